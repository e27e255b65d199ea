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
