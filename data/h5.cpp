#include "data/h5.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include <hdf5.h>

#include "core/error.h"
#include "core/log.h"

namespace uqa::data::h5 {
namespace {

static_assert(sizeof(hid_t) == sizeof(std::int64_t));

/// The library keeps global state without locks.
std::recursive_mutex& library_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

class LibraryLock {
 public:
  LibraryLock() : lock_(library_mutex()) {
    // Errors are reported by our own messages; the library would print a stack to stderr.
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }

 private:
  std::lock_guard<std::recursive_mutex> lock_;
};

/// The outermost and the innermost entry of the library's error stack: what failed, and why.
struct Reason {
  std::string outer, inner;
};

herr_t note_reason(unsigned, const H5E_error2_t* entry, void* at) {
  auto& reason = *static_cast<Reason*>(at);
  if (entry->desc == nullptr) return 0;
  if (reason.outer.empty()) reason.outer = entry->desc;
  reason.inner = entry->desc;
  return 0;
}

std::string reason() {
  Reason found;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, note_reason, &found);
  H5Eclear2(H5E_DEFAULT);
  std::string text = found.outer == found.inner ? found.inner : found.outer + ": " + found.inner;
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text.empty() ? "no reason given" : text;
}

/// Result of a C call: negative means failure.
template <typename R>
R checked(R result, const fs::path& path, const std::string& doing) {
  if (result < 0) UQA_FAIL(ErrorCode::kData, "{}: cannot {}: {}", path.string(), doing, reason());
  return result;
}

class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Handle() {
    if (id_ >= 0 && close_(id_) < 0) log::warn("data", "HDF5 handle not closed: {}", reason());
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  [[nodiscard]] hid_t get() const noexcept { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

hid_t native(Type type) {
  switch (type) {
    case Type::kInt32: return H5T_STD_I32LE;
    case Type::kInt64: return H5T_STD_I64LE;
    case Type::kFloat32: return H5T_IEEE_F32LE;
    case Type::kByte: return H5T_STD_U8LE;
  }
  return H5I_INVALID_HID;
}

std::int64_t width(Type type) {
  switch (type) {
    case Type::kInt32:
    case Type::kFloat32: return 4;
    case Type::kInt64: return 8;
    case Type::kByte: return 1;
  }
  return 0;
}

const char* name_of(Type type) {
  switch (type) {
    case Type::kInt32: return "little-endian int32";
    case Type::kInt64: return "little-endian int64";
    case Type::kFloat32: return "little-endian float32";
    case Type::kByte: return "byte";
  }
  return "?";
}

bool exists(hid_t file, const fs::path& path, const std::string& name) {
  // Each group on the way must exist before the library may be asked for the next one.
  for (std::size_t at = name.find('/'); ; at = name.find('/', at + 1)) {
    const std::string prefix = name.substr(0, at);
    if (checked(H5Lexists(file, prefix.c_str(), H5P_DEFAULT), path, "look up '" + prefix + "'") == 0) return false;
    if (at == std::string::npos) return true;
  }
}

}  // namespace

File File::create(const fs::path& path) {
  const LibraryLock lock;
  const Handle access(checked(H5Pcreate(H5P_FILE_ACCESS), path, "prepare"), H5Pclose);
  checked(H5Pset_alignment(access.get(), 0, static_cast<hsize_t>(kAlignment)), path, "set the alignment");
  checked(H5Pset_fapl_core(access.get(), std::size_t{1} << 20, false), path, "keep the file in memory");
  const hid_t id = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get());
  File file{path, checked(id, path, "create the file")};
  file.in_memory_ = true;
  return file;
}

File File::open(const fs::path& path) {
  const LibraryLock lock;
  UQA_CHECK(fs::is_regular_file(path), ErrorCode::kData, "{} is not a file", path.string());
  const Handle access(checked(H5Pcreate(H5P_FILE_ACCESS), path, "prepare"), H5Pclose);
  checked(H5Pset_file_locking(access.get(), false, true), path, "turn file locking off");
  return {path, checked(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), path, "open it as HDF5")};
}

File::File(File&& other) noexcept : path_(std::move(other.path_)), id_(std::exchange(other.id_, -1)), in_memory_(other.in_memory_) {}

File& File::operator=(File&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(id_, other.id_);
  std::swap(in_memory_, other.in_memory_);
  return *this;
}

File::~File() {
  if (id_ < 0) return;
  const LibraryLock lock;
  if (H5Fclose(id_) < 0) log::warn("data", "{} was not closed: {}", path_.string(), reason());
}

void File::close() {
  std::string image;
  {
    const LibraryLock lock;
    if (id_ < 0) return;
    if (in_memory_) {
      checked(H5Fflush(id_, H5F_SCOPE_GLOBAL), path_, "complete the file");
      const auto size = checked(H5Fget_file_image(id_, nullptr, 0), path_, "measure the file");
      image.resize(static_cast<std::size_t>(size));
      checked(H5Fget_file_image(id_, image.data(), image.size()), path_, "copy the file");
    }
    checked(H5Fclose(std::exchange(id_, -1)), path_, "close the file");
  }
  if (in_memory_) write_file_atomic(path_, image);
}

void File::write_array(const std::string& name, Type type, const void* values, std::int64_t count) {
  const LibraryLock lock;
  const auto size = static_cast<hsize_t>(count);
  const Handle space(checked(H5Screate_simple(1, &size, nullptr), path_, "describe '" + name + "'"), H5Sclose);
  const Handle links(checked(H5Pcreate(H5P_LINK_CREATE), path_, "prepare"), H5Pclose);
  checked(H5Pset_create_intermediate_group(links.get(), 1), path_, "prepare");
  const Handle layout(checked(H5Pcreate(H5P_DATASET_CREATE), path_, "prepare"), H5Pclose);
  checked(H5Pset_layout(layout.get(), H5D_CONTIGUOUS), path_, "prepare");
  // Early: else there is no offset before the first write. Never filled: every element is written below.
  checked(H5Pset_alloc_time(layout.get(), H5D_ALLOC_TIME_EARLY), path_, "prepare");
  checked(H5Pset_fill_time(layout.get(), H5D_FILL_TIME_NEVER), path_, "prepare");
  checked(H5Pset_obj_track_times(layout.get(), false), path_, "prepare");  // equal input gives equal files
  const Handle set(checked(H5Dcreate2(id_, name.c_str(), native(type), space.get(), links.get(), layout.get(), H5P_DEFAULT), path_,
                           "create '" + name + "'"),
                   H5Dclose);
  if (count > 0) checked(H5Dwrite(set.get(), native(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, values), path_, "write '" + name + "'");
}

ArrayPlace File::find_array(const std::string& name, Type type) const {
  const LibraryLock lock;
  UQA_CHECK(exists(id_, path_, name), ErrorCode::kData, "{}: array '{}' is missing", path_.string(), name);
  const Handle set(checked(H5Dopen2(id_, name.c_str(), H5P_DEFAULT), path_, "open '" + name + "'"), H5Dclose);
  const Handle stored(checked(H5Dget_type(set.get()), path_, "read the type of '" + name + "'"), H5Tclose);
  UQA_CHECK(H5Tequal(stored.get(), native(type)) > 0, ErrorCode::kData, "{}: array '{}' is not of type {}", path_.string(), name, name_of(type));
  const Handle space(checked(H5Dget_space(set.get()), path_, "read the shape of '" + name + "'"), H5Sclose);
  UQA_CHECK(H5Sget_simple_extent_ndims(space.get()) == 1, ErrorCode::kData, "{}: array '{}' is not one-dimensional", path_.string(), name);
  const Handle layout(checked(H5Dget_create_plist(set.get()), path_, "read the layout of '" + name + "'"), H5Pclose);
  UQA_CHECK(H5Pget_layout(layout.get()) == H5D_CONTIGUOUS, ErrorCode::kData, "{}: array '{}' is not contiguous", path_.string(), name);
  const auto count = checked(H5Sget_simple_extent_npoints(space.get()), path_, "read the size of '" + name + "'");
  if (count == 0) return {};
  const haddr_t offset = H5Dget_offset(set.get());
  UQA_CHECK(offset != HADDR_UNDEF, ErrorCode::kData, "{}: array '{}' has no place in the file", path_.string(), name);
  const auto file_bytes = static_cast<std::uint64_t>(fs::file_size(path_));
  UQA_CHECK(offset % static_cast<haddr_t>(kAlignment) == 0, ErrorCode::kData, "{}: array '{}' starts at byte {}, must be a multiple of {}",
            path_.string(), name, offset, kAlignment);
  UQA_CHECK(offset <= file_bytes && static_cast<std::uint64_t>(count) <= (file_bytes - offset) / static_cast<std::uint64_t>(width(type)),
            ErrorCode::kData, "{}: array '{}' with {} elements at byte {} reaches beyond the file's {} bytes", path_.string(), name, count, offset,
            file_bytes);
  return {.offset_bytes = static_cast<std::int64_t>(offset), .count = count};
}

void File::read_array(const std::string& name, Type type, void* out, std::int64_t count) const {
  if (count == 0) return;
  const LibraryLock lock;
  const Handle set(checked(H5Dopen2(id_, name.c_str(), H5P_DEFAULT), path_, "open '" + name + "'"), H5Dclose);
  checked(H5Dread(set.get(), native(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, out), path_, "read '" + name + "'");
}

bool File::contains(const std::string& name) const {
  const LibraryLock lock;
  return exists(id_, path_, name);
}

void File::set_attribute(const std::string& name, const std::string& value) {
  const LibraryLock lock;
  const Handle space(checked(H5Screate(H5S_SCALAR), path_, "prepare"), H5Sclose);
  const Handle type(checked(H5Tcopy(H5T_C_S1), path_, "prepare"), H5Tclose);
  checked(H5Tset_size(type.get(), value.size() + 1), path_, "prepare");
  checked(H5Tset_cset(type.get(), H5T_CSET_UTF8), path_, "prepare");
  const Handle attribute(checked(H5Acreate2(id_, name.c_str(), type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT), path_,
                                 "create attribute '" + name + "'"),
                         H5Aclose);
  checked(H5Awrite(attribute.get(), type.get(), value.c_str()), path_, "write attribute '" + name + "'");
}

void File::set_attribute(const std::string& name, std::int64_t value) {
  const LibraryLock lock;
  const Handle space(checked(H5Screate(H5S_SCALAR), path_, "prepare"), H5Sclose);
  const Handle attribute(checked(H5Acreate2(id_, name.c_str(), H5T_STD_I64LE, space.get(), H5P_DEFAULT, H5P_DEFAULT), path_,
                                 "create attribute '" + name + "'"),
                         H5Aclose);
  checked(H5Awrite(attribute.get(), H5T_STD_I64LE, &value), path_, "write attribute '" + name + "'");
}

std::string File::text_attribute(const std::string& name) const {
  const LibraryLock lock;
  UQA_CHECK(checked(H5Aexists(id_, name.c_str()), path_, "look up attribute '" + name + "'") > 0, ErrorCode::kData,
            "{}: attribute '{}' is missing", path_.string(), name);
  const Handle attribute(checked(H5Aopen(id_, name.c_str(), H5P_DEFAULT), path_, "open attribute '" + name + "'"), H5Aclose);
  const Handle type(checked(H5Aget_type(attribute.get()), path_, "read the type of attribute '" + name + "'"), H5Tclose);
  const Handle space(checked(H5Aget_space(attribute.get()), path_, "read the shape of attribute '" + name + "'"), H5Sclose);
  UQA_CHECK(H5Tget_class(type.get()) == H5T_STRING && H5Tis_variable_str(type.get()) == 0 && H5Sget_simple_extent_npoints(space.get()) == 1,
            ErrorCode::kData, "{}: attribute '{}' is not a text of fixed size", path_.string(), name);
  std::string text(H5Tget_size(type.get()), '\0');
  checked(H5Aread(attribute.get(), type.get(), text.data()), path_, "read attribute '" + name + "'");
  text.resize(text.find('\0') == std::string::npos ? text.size() : text.find('\0'));
  return text;
}

std::int64_t File::integer_attribute(const std::string& name) const {
  const LibraryLock lock;
  UQA_CHECK(checked(H5Aexists(id_, name.c_str()), path_, "look up attribute '" + name + "'") > 0, ErrorCode::kData,
            "{}: attribute '{}' is missing", path_.string(), name);
  const Handle attribute(checked(H5Aopen(id_, name.c_str(), H5P_DEFAULT), path_, "open attribute '" + name + "'"), H5Aclose);
  const Handle type(checked(H5Aget_type(attribute.get()), path_, "read the type of attribute '" + name + "'"), H5Tclose);
  const Handle space(checked(H5Aget_space(attribute.get()), path_, "read the shape of attribute '" + name + "'"), H5Sclose);
  UQA_CHECK(H5Tequal(type.get(), H5T_STD_I64LE) > 0 && H5Sget_simple_extent_npoints(space.get()) == 1, ErrorCode::kData,
            "{}: attribute '{}' is not one int64", path_.string(), name);
  std::int64_t value = 0;
  checked(H5Aread(attribute.get(), H5T_STD_I64LE, &value), path_, "read attribute '" + name + "'");
  return value;
}

}  // namespace uqa::data::h5
