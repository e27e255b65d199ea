#include "comm/heartbeat.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <system_error>

#include <fmt/format.h>

#include "core/error.h"

namespace uqa::comm {

namespace fs = std::filesystem;

namespace {

constexpr std::uint64_t kMagic = 0x32746265'68617175ULL;  // "uqahebt2"
constexpr auto kBytes = sizeof(HeartbeatRecord);

std::string reason() { return std::error_code(errno, std::generic_category()).message(); }

HeartbeatRecord* map_record(int fd) {
  void* const memory = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<HeartbeatRecord*>(memory);
}

}  // namespace

Heartbeats::Heartbeats(int rank, int world_size) : rank_(rank), world_size_(world_size) {
  private_record_.magic = kMagic;
  private_record_.pid = static_cast<std::uint64_t>(::getpid());
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) == 0) private_record_.host = std::hash<std::string>{}(host.data());
}

Heartbeats::~Heartbeats() {
  unmap_report();
  for (const int fd : peer_fds_) {
    if (fd >= 0) ::close(fd);
  }
  if (record_ != &private_record_) ::munmap(record_, kBytes);
}

fs::path Heartbeats::file_of(int rank) const { return directory_ / fmt::format("rank-{}.heartbeat", rank); }

void Heartbeats::create(const fs::path& directory) {
  const auto refuse = [&](const std::string& why) {
    UQA_FAIL(ErrorCode::kConfig, "heartbeat directory = {}: {}; every rank must be able to write there",
             directory.string(), why);
  };
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) refuse(error.message());
  const fs::path name = directory / fmt::format("rank-{}.heartbeat", rank_);
  ::unlink(name.c_str());  // of an earlier job; its readers keep their own
  const int fd = ::open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) refuse(reason());
  // A file with a hole would end the job with SIGBUS on a full disk: reserve the blocks.
  const int full = ::posix_fallocate(fd, 0, static_cast<off_t>(kBytes));
  HeartbeatRecord* const mapped = full == 0 ? map_record(fd) : nullptr;
  const std::string why = full != 0 ? std::generic_category().message(full) : reason();
  ::close(fd);
  if (mapped == nullptr) {
    ::unlink(name.c_str());
    refuse(why);
  }
  *mapped = *record_;
  mapped->reported = 0;
  unmap_report();
  for (const int peer : peer_fds_) {
    if (peer >= 0) ::close(peer);
  }
  peer_fds_.clear();
  remove();
  if (record_ != &private_record_) ::munmap(record_, kBytes);
  record_ = mapped;
  directory_ = directory;
}

void Heartbeats::meet(PeerFiles files) {
  for (int rank = 0; rank < world_size_; ++rank) {
    if (report_record_ != nullptr && files == PeerFiles::kByName) return;
    const int fd = ::open(file_of(rank).c_str(), O_RDWR | O_CLOEXEC);
    if (fd >= 0 && report_record_ == nullptr) report_record_ = map_record(fd);
    if (files == PeerFiles::kHeldOpen) {
      peer_fds_.push_back(fd);
    } else if (fd >= 0) {
      ::close(fd);
    }
  }
}

void Heartbeats::remove() noexcept {
  if (directory_.empty()) return;
  ::unlink(file_of(rank_).c_str());
  ::rmdir(directory_.c_str());  // succeeds for the last rank only, and only when nothing else is there
  directory_.clear();
}

std::optional<HeartbeatRecord> Heartbeats::read(int rank) const {
  if (rank == rank_) return *record_;
  int fd = -1;
  if (!peer_fds_.empty()) {
    fd = peer_fds_[static_cast<std::size_t>(rank)];
  } else if (!directory_.empty()) {
    fd = ::open(file_of(rank).c_str(), O_RDONLY | O_CLOEXEC);
  }
  if (fd < 0) return std::nullopt;
  HeartbeatRecord record;
  const bool whole = ::pread(fd, &record, kBytes, 0) == static_cast<ssize_t>(kBytes) && record.magic == kMagic;
  if (peer_fds_.empty()) ::close(fd);
  if (!whole) return std::nullopt;
  return record;
}

bool Heartbeats::claim_report() noexcept {
  if (report_record_ == nullptr) return true;
  return std::atomic_ref(report_record_->reported).exchange(1) == 0;
}

void Heartbeats::unmap_report() noexcept {
  if (report_record_ != nullptr) ::munmap(report_record_, kBytes);
  report_record_ = nullptr;
}

}  // namespace uqa::comm
