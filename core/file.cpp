#include "core/file.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"

namespace uqa {
namespace {

class FileDescriptor {
 public:
  FileDescriptor(const fs::path& path, int flags, mode_t mode = 0644) : fd_(::open(path.c_str(), flags | O_CLOEXEC, mode)) {
    UQA_CHECK(fd_ >= 0, ErrorCode::kData, "cannot open {}: {}", path.string(), std::strerror(errno));
  }
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  [[nodiscard]] int get() const noexcept { return fd_; }

 private:
  int fd_;
};

void write_all(int fd, std::string_view bytes, const fs::path& path) {
  while (!bytes.empty()) {
    const auto n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    UQA_CHECK(n > 0, ErrorCode::kData, "cannot write {}: {}; free some space and run again", path.string(), std::strerror(errno));
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
}

fs::path parent_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

fs::path without_trailing_slash(const fs::path& path) { return path.has_filename() ? path : path.parent_path(); }

}  // namespace

std::string read_file(const fs::path& path) {
  const MappedFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

void sync_path(const fs::path& path) {
  const FileDescriptor fd(path, O_RDONLY);
  UQA_CHECK(::fsync(fd.get()) == 0, ErrorCode::kData, "cannot sync {}: {}", path.string(), std::strerror(errno));
}

void write_file_atomic(const fs::path& path, std::string_view bytes) { write_file_atomic(path, std::span(&bytes, 1)); }

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)), temporary_(fs::path(path_).concat(fmt::format(".{}.tmp", ::getpid()))) {
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  UQA_CHECK(fd_ >= 0, ErrorCode::kData, "cannot open {}: {}", temporary_.string(), std::strerror(errno));
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::append(std::string_view bytes) { write_all(fd_, bytes, path_); }

void AtomicFile::commit() {
  UQA_CHECK(::fsync(fd_) == 0, ErrorCode::kData, "cannot sync {}: {}", path_.string(), std::strerror(errno));
  UQA_CHECK(::rename(temporary_.c_str(), path_.c_str()) == 0, ErrorCode::kData, "cannot rename {} to {}: {}", temporary_.string(), path_.string(),
            std::strerror(errno));
  ::close(std::exchange(fd_, -1));
  sync_path(parent_of(path_));
}

void write_file_atomic(const fs::path& path, std::span<const std::string_view> parts) {
  AtomicFile file(path);
  for (const std::string_view part : parts) file.append(part);
  file.commit();
}

MappedFile::MappedFile(const fs::path& path) : path_(path) {
  const FileDescriptor fd(path, O_RDONLY);
  struct stat info {};
  UQA_CHECK(::fstat(fd.get(), &info) == 0, ErrorCode::kData, "cannot read {}: {}", path.string(), std::strerror(errno));
  UQA_CHECK(S_ISREG(info.st_mode), ErrorCode::kData, "{} is not a regular file", path.string());
  size_ = static_cast<std::size_t>(info.st_size);
  if (size_ == 0) return;
  void* const at = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  UQA_CHECK(at != MAP_FAILED, ErrorCode::kData, "cannot map {}: {}", path.string(), std::strerror(errno));
  data_ = static_cast<const std::byte*>(at);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

namespace {
constexpr std::string_view kMarker = ".uqa-kind";
}

OutputDir::OutputDir(fs::path path, OutputDirOptions options)
    : final_(without_trailing_slash(path)), staging_(fs::path(final_).concat(".tmp")), options_(std::move(options)) {
  std::error_code ec;
  if (fs::exists(final_, ec)) {
    UQA_CHECK(fs::is_directory(final_, ec), ErrorCode::kConfig, "output {} exists and is not a directory; give another path", final_.string());
    const bool empty = fs::is_empty(final_, ec);
    UQA_CHECK(!ec, ErrorCode::kData, "cannot list {}: {}", final_.string(), ec.message());
    UQA_CHECK(options_.overwrite || empty, ErrorCode::kConfig,
              "output directory {} exists and is not empty; give another path or --overwrite", final_.string());
  }
  fs::remove_all(staging_, ec);
  fs::create_directories(staging_, ec);
  UQA_CHECK(!ec, ErrorCode::kData, "cannot create {}: {}", staging_.string(), ec.message());
}

OutputDir::~OutputDir() {
  if (committed_) return;
  std::error_code ec;
  fs::remove_all(staging_, ec);
}

void OutputDir::commit() {
  write_file_atomic(staging_ / kMarker, options_.kind + "\n");
  std::error_code ec;
  for (auto entry = fs::recursive_directory_iterator(staging_, ec); !ec && entry != fs::recursive_directory_iterator(); entry.increment(ec)) {
    if (entry->is_regular_file() || entry->is_directory()) sync_path(entry->path());
  }
  UQA_CHECK(!ec, ErrorCode::kData, "cannot list {}: {}", staging_.string(), ec.message());
  if (::renameat2(AT_FDCWD, staging_.c_str(), AT_FDCWD, final_.c_str(), RENAME_EXCHANGE) == 0) {
    committed_ = true;
    fs::remove_all(staging_, ec);  // now the earlier directory
  } else {
    // Nothing to exchange with, or a file system that cannot: two renames, undone if the second one fails.
    const fs::path old = fs::path(final_).concat(".old.tmp");
    fs::remove_all(old, ec);
    const bool replaces = fs::exists(final_, ec);
    if (replaces) fs::rename(final_, old, ec);
    UQA_CHECK(!ec, ErrorCode::kData, "cannot move the earlier {} away: {}", final_.string(), ec.message());
    fs::rename(staging_, final_, ec);
    if (ec) {
      std::error_code undo;
      if (replaces) fs::rename(old, final_, undo);
      UQA_FAIL(ErrorCode::kData, "cannot rename {} to {}: {}", staging_.string(), final_.string(), ec.message());
    }
    committed_ = true;
    fs::remove_all(old, ec);
  }
  sync_path(parent_of(final_));
}

}  // namespace uqa
