// Reading a checkpoint at any layout: each rank copies what its slices have in common with those that are stored.
#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <span>

#include "core/hash.h"
#include "models/format/safetensors.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_manifest.h"

namespace uqa::trainer {
namespace {

using Sizes = std::vector<std::int64_t>;

/// A row-major array and where in the whole tensor its element [0, 0, ...] would lie.
struct PlacedArray {
  Sizes offset, shape;
};

/// What a slice and a wanted part have in common.
struct Box {
  Sizes begin, end;
  [[nodiscard]] bool empty() const {
    for (std::size_t d = 0; d < begin.size(); ++d) {
      if (begin[d] >= end[d]) return true;
    }
    return false;
  }
};

/// Copies `box` from `source` to `target`, elements of `width` bytes.
class BoxCopy {
 public:
  BoxCopy(const Box& box, const PlacedArray& from, const PlacedArray& to, std::size_t width) : box_(box), from_(from), to_(to) {
    const auto dims = box.begin.size();
    from_stride_.assign(dims + 1, static_cast<std::int64_t>(width));
    to_stride_ = from_stride_;
    for (std::size_t d = dims; d-- > 0;) {
      from_stride_[d] = from_stride_[d + 1] * from.shape[d];
      to_stride_[d] = to_stride_[d + 1] * to.shape[d];
    }
    // Dimensions behind `run_dim_` are whole in both arrays: one copy takes all of them.
    run_dim_ = dims == 0 ? 0 : dims - 1;
    while (run_dim_ > 0 && box.end[run_dim_] - box.begin[run_dim_] == from.shape[run_dim_] && from.shape[run_dim_] == to.shape[run_dim_]) --run_dim_;
  }
  void operator()(const std::byte* source, std::byte* target) const {
    if (box_.begin.empty()) {
      std::memcpy(target, source, static_cast<std::size_t>(from_stride_[0]));
    } else {
      copy(0, source, target);
    }
  }

 private:
  void copy(std::size_t d, const std::byte* source, std::byte* target) const {
    source += (box_.begin[d] - from_.offset[d]) * from_stride_[d + 1];
    target += (box_.begin[d] - to_.offset[d]) * to_stride_[d + 1];
    const std::int64_t count = box_.end[d] - box_.begin[d];
    if (d == run_dim_) {
      std::memcpy(target, source, static_cast<std::size_t>(count * from_stride_[d + 1]));
      return;
    }
    for (std::int64_t i = 0; i < count; ++i) copy(d + 1, source + i * from_stride_[d + 1], target + i * to_stride_[d + 1]);
  }
  const Box& box_;
  const PlacedArray &from_, &to_;
  Sizes from_stride_, to_stride_;  ///< bytes of one step in dimension d - 1
  std::size_t run_dim_ = 0;
};

/// One part of this rank's tensor: which box of the whole it is, and how the local array lies in it.
struct WantedPart {
  Box box;
  PlacedArray local;
};

std::vector<WantedPart> wanted_parts(const NamedParameter& parameter) {
  const Sizes shape = models::global_shape_of(parameter.tensor, parameter.layout), local = parameter.tensor.sizes().vec(), zero(shape.size(), 0);
  if (!parameter.layout.sharded()) return {{.box = {.begin = zero, .end = shape}, .local = {.offset = zero, .shape = local}}};
  std::vector<WantedPart> parts;
  const auto dim = static_cast<std::size_t>(parameter.layout.dim);
  std::int64_t position = 0;
  for (const auto& range : parameter.layout.ranges) {
    WantedPart part{.box = {.begin = zero, .end = shape}, .local = {.offset = zero, .shape = local}};
    part.box.begin[dim] = range.begin;
    part.box.end[dim] = range.begin + range.length;
    part.local.offset[dim] = range.begin - position;  // the range stands at `position` of the local array
    position += range.length;
    parts.push_back(std::move(part));
  }
  return parts;
}

Box common_box(const Box& wanted, const TensorSlice& slice) {
  Box box = wanted;
  for (std::size_t d = 0; d < box.begin.size(); ++d) {
    box.begin[d] = std::max(box.begin[d], slice.offset[d]);
    box.end[d] = std::min(box.end[d], slice.offset[d] + slice.shape[d]);
  }
  return box;
}

void check_names(const std::string& what, const Manifest& manifest, const std::vector<NamedParameter>& tensors, Coverage coverage) {
  std::set<std::string> wanted;
  for (const auto& [name, tensor, lr_scale, layout] : tensors) {
    wanted.insert(name);
    models::check_layout(name, tensor, layout);
    UQA_CHECK(tensor.is_contiguous(), ErrorCode::kInternal, "tensor {}: must be contiguous to be loaded", name);
    const auto at = manifest.tensors.find(name);
    UQA_CHECK(at != manifest.tensors.end(), ErrorCode::kData, "{}: tensor {} is missing; the run has other parameters than the checkpoint",
              what, name);
    const auto shape = models::global_shape_of(tensor, layout);
    UQA_CHECK(at->second.shape == shape && at->second.dtype == dtype_name(tensor), ErrorCode::kData,
              "{}: tensor {} is {} {} in the checkpoint and {} {} in this run; use the settings that it was written with", what, name,
              at->second.dtype, fmt::join(at->second.shape, " x "), dtype_name(tensor), fmt::join(shape, " x "));
  }
  if (coverage == Coverage::kSubset) return;
  for (const auto& [name, entry] : manifest.tensors) {
    UQA_CHECK(wanted.contains(name), ErrorCode::kData, "{}: tensor {} is not part of this run; use the settings that it was written with",
              what, name);
  }
}

/// Files with a slice that some tensor has something in common with.
std::set<std::string> needed_files(const Manifest& manifest, const std::vector<NamedParameter>& tensors) {
  std::set<std::string> files;
  for (const auto& parameter : tensors) {
    const auto parts = wanted_parts(parameter);
    for (const auto& slice : manifest.tensors.at(parameter.name).slices) {
      if (slice.offset.size() != static_cast<std::size_t>(parameter.tensor.dim()) || slice.shape.size() != slice.offset.size()) {
        files.insert(slice.file);  // check_slices() tells
        continue;
      }
      for (const auto& part : parts) {
        if (parameter.tensor.numel() == 0 || !common_box(part.box, slice).empty()) files.insert(slice.file);
      }
    }
  }
  return files;
}

}  // namespace

Json load_checkpoint(const fs::path& path, const std::vector<NamedParameter>& tensors, Coverage coverage) {
  const at::NoGradGuard no_grad;
  const Manifest manifest = Manifest::read(path / kManifestName);
  check_names((path / kManifestName).string(), manifest, tensors, coverage);
  // Everything is checked before the first byte is copied: a failed load leaves the run as it was.
  std::map<std::string, MappedFile> files;
  std::map<std::string, format::SafetensorsHeader> headers;
  for (const auto& name : needed_files(manifest, tensors)) {
    const auto info = manifest.files.find(name);
    if (info == manifest.files.end()) continue;  // check_slices() tells
    MappedFile file(path / name);
    const std::string file_path = (path / name).string();
    UQA_CHECK(static_cast<std::int64_t>(file.bytes().size()) == info->second.size_bytes, ErrorCode::kData,
              "{} has {} bytes, the manifest says {}; it was cut or replaced", file_path, file.bytes().size(), info->second.size_bytes);
    UQA_CHECK(hash_hex(file.bytes()) == info->second.hash, ErrorCode::kData, "{} does not match its checksum in the manifest; it is corrupt", file_path);
    headers.emplace(name, format::parse_safetensors(file.bytes(), file_path));
    files.emplace(name, std::move(file));
  }
  for (const auto& parameter : tensors) check_slices(path, parameter.name, manifest, headers);
  for (const auto& parameter : tensors) {
    if (parameter.tensor.numel() == 0) continue;
    // Files are read by the host: what lives elsewhere is put together in memory and copied once.
    const Tensor own = parameter.tensor.detach();
    const Tensor host = own.is_cpu() ? own : at::empty(own.sizes(), own.options().device(at::kCPU));
    auto* const target = static_cast<std::byte*>(host.mutable_data_ptr());
    for (const auto& part : wanted_parts(parameter)) {
      for (const auto& slice : manifest.tensors.at(parameter.name).slices) {
        const Box box = common_box(part.box, slice);
        if (box.empty()) continue;
        const auto& info = headers.at(slice.file).tensors.at(slice.key);
        const PlacedArray stored{.offset = slice.offset, .shape = slice.shape};
        BoxCopy(box, stored, part.local, parameter.tensor.element_size())(files.at(slice.file).bytes().data() + info.begin, target);
      }
    }
    if (!own.is_cpu()) own.copy_(host);
  }
  return manifest.loop;
}

}  // namespace uqa::trainer
