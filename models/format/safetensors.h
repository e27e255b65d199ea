// models/format/safetensors.h - the safetensors container, torch-free: header parser (foreign bytes) and writer.
// Format: u64 little-endian header length, JSON header {name: {dtype, shape, data_offsets}}, data.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/file.h"

namespace uqa::format {

struct TensorInfo {
  std::string dtype;                ///< "F32" "BF16" "F16" "I64" "I32" "U8" "F64" ...
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0; ///< byte range in the file (absolute)
};

struct SafetensorsHeader {
  std::map<std::string, TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
};

[[nodiscard]] std::size_t dtype_bytes(const std::string& dtype);  ///< Error(kData) if unknown

/// Parses and checks the header of a whole file's bytes: lengths, JSON, dtype, that shape x width = byte range, ranges inside
/// the file and not overlapping. Throws Error(kData) naming `what`. Never reads outside `file`.
[[nodiscard]] SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& what);

/// A tensor to be written.
struct TensorPlan {
  std::string name, dtype;
  std::vector<std::int64_t> shape;
};
/// Writes one file piece by piece: the header at once, then the bytes of the tensors in the order of order_of(), in as many pieces as the
/// caller likes. The file is there after finish(), whole. Errors as write_safetensors().
class SafetensorsWriter {
 public:
  SafetensorsWriter(const fs::path& path, const std::vector<TensorPlan>& tensors, const std::map<std::string, std::string>& metadata = {});
  void append(std::span<const std::byte> bytes);
  /// Error(kInternal) unless every byte has been given.
  void finish();
  /// Positions in `tensors` in the order of the data: the widest dtypes first, so that every tensor is aligned without gaps.
  [[nodiscard]] static std::vector<std::size_t> order_of(const std::vector<TensorPlan>& tensors);

 private:
  AtomicFile file_;
  std::uint64_t expected_ = 0, written_ = 0;  ///< bytes of data
};

struct TensorBytes {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};
/// Writes one file atomically (sync, rename). The data starts at a multiple of 8 bytes and has no gaps (the format forbids them):
/// widest dtypes first, otherwise in the order given, so every tensor is aligned to its dtype. Throws Error(kData).
void write_safetensors(const fs::path& path, const std::vector<TensorBytes>& tensors, const std::map<std::string, std::string>& metadata = {});

}  // namespace uqa::format
