// data/h5.h - HDF5 files with one-dimensional contiguous arrays that can be mapped, and checked calls around the C library.
//
//   auto out = h5::File::create(path);
//   out.write<std::int64_t>("users/offsets", offsets);
//   out.set_attribute("format_version", 1);
//   out.close();                                       // reports what could not be written
//   const auto in = h5::File::open(path);
//   const auto where = in.array<std::int64_t>("users/offsets");   // byte offset and count inside the file
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/file.h"

namespace uqa::data::h5 {

/// Every array starts at a multiple of this many bytes.
inline constexpr std::int64_t kAlignment = 64;

enum class Type { kInt32, kInt64, kFloat32, kByte };

template <typename T>
struct TypeOf;
template <>
struct TypeOf<std::int32_t> {
  static constexpr Type value = Type::kInt32;
};
template <>
struct TypeOf<std::int64_t> {
  static constexpr Type value = Type::kInt64;
};
template <>
struct TypeOf<float> {
  static constexpr Type value = Type::kFloat32;
};
template <>
struct TypeOf<char> {
  static constexpr Type value = Type::kByte;
};

/// Where an array lies. An empty array has no place: offset 0.
struct ArrayPlace {
  std::int64_t offset_bytes = 0;
  std::int64_t count = 0;
};

/// An open HDF5 file; move-only. The HDF5 library is not thread-safe: each call below takes one process-wide lock.
/// Errors are Error(kData) with the file, what was tried and the library's own reason.
class File {
 public:
  /// A new file, kept in memory until close() writes it as a whole: HDF5 itself never meets a full disk, after which its own
  /// clean-up at exit crashes. Needs as much memory as the file has bytes, twice during close().
  [[nodiscard]] static File create(const fs::path& path);
  /// Read-only; file locking is off, so that read-only and lock-less file systems work.
  [[nodiscard]] static File open(const fs::path& path);
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  /// Closes; a failure is logged, not thrown. Call close() after writing instead.
  ~File();

  /// Writes everything out and closes. Throws when that fails, for example on a full disk.
  void close();

  /// A new contiguous little-endian array named by a path; missing groups are made.
  template <typename T>
  void write(const std::string& name, std::span<const T> values) {
    write_array(name, TypeOf<T>::value, values.data(), static_cast<std::int64_t>(values.size()));
  }
  template <typename T>
  void write(const std::string& name, const std::vector<T>& values) {
    write<T>(name, std::span<const T>(values));
  }

  /// Checks that `name` is a one-dimensional contiguous array of T, native byte order, aligned and wholly inside the file.
  template <typename T>
  [[nodiscard]] ArrayPlace array(const std::string& name) const {
    return find_array(name, TypeOf<T>::value);
  }
  /// The array's content.
  template <typename T>
  [[nodiscard]] std::vector<T> read(const std::string& name) const {
    std::vector<T> out(static_cast<std::size_t>(array<T>(name).count));
    read_array(name, TypeOf<T>::value, out.data(), static_cast<std::int64_t>(out.size()));
    return out;
  }
  [[nodiscard]] bool contains(const std::string& name) const;

  /// Attributes of the file's root.
  void set_attribute(const std::string& name, const std::string& value);
  void set_attribute(const std::string& name, std::int64_t value);
  [[nodiscard]] std::string text_attribute(const std::string& name) const;
  [[nodiscard]] std::int64_t integer_attribute(const std::string& name) const;

  [[nodiscard]] const fs::path& path() const noexcept { return path_; }

 private:
  File(fs::path path, std::int64_t id) : path_(std::move(path)), id_(id) {}
  void write_array(const std::string& name, Type type, const void* values, std::int64_t count);
  [[nodiscard]] ArrayPlace find_array(const std::string& name, Type type) const;
  void read_array(const std::string& name, Type type, void* out, std::int64_t count) const;

  fs::path path_;
  std::int64_t id_ = -1;
  bool in_memory_ = false;  ///< made by create()
};

}  // namespace uqa::data::h5
