// trainer/checkpoint_manifest.h - manifest.json of a checkpoint: which file holds which slice of which tensor, and checksums.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/json.h"
#include "models/format/safetensors.h"
#include "models/torch_pch.h"

namespace uqa::trainer {

inline constexpr const char* kManifestName = "manifest.json";

/// A box of a tensor: positions [offset[d], offset[d] + shape[d]) of every dimension d, stored as tensor `key` in `file`.
struct TensorSlice {
  std::string file;
  std::string key;  ///< the tensor's name, or slice_key() where it is cut
  std::vector<std::int64_t> offset, shape;
};
struct TensorEntry {
  std::string dtype;                 ///< safetensors name: "F32", "I64", ...
  std::vector<std::int64_t> shape;   ///< global
  std::vector<TensorSlice> slices;   ///< together they cover the tensor once
};
struct FileEntry {
  std::string hash;                  ///< 128-bit XXH3, hexadecimal
  std::int64_t size_bytes = 0;
};

struct Manifest {
  std::int64_t step = 0;
  Json loop;
  std::map<std::string, FileEntry> files;
  std::map<std::string, TensorEntry> tensors;
  /// JSON with a checksum of itself.
  [[nodiscard]] std::string to_text() const;
  /// Throws Error(kData) naming file and key; a changed byte is noticed.
  [[nodiscard]] static Manifest read(const fs::path& path);
};

[[nodiscard]] std::string rank_file(int rank);                          ///< "rank-3.safetensors"
[[nodiscard]] std::string dtype_name(const at::Tensor& tensor);         ///< "F32", "BF16", "I64"; others Error(kInternal)
[[nodiscard]] std::string slice_key(const std::string& name, std::int64_t begin);  ///< "table@1024"
/// Checks that the slices lie inside the tensor, cover as many elements as it has, are in listed files, and are in those of `headers` with
/// their shape and dtype. Throws Error(kData) naming file and tensor.
void check_slices(const fs::path& checkpoint, const std::string& name, const Manifest& manifest,
                  const std::map<std::string, format::SafetensorsHeader>& headers);

}  // namespace uqa::trainer
