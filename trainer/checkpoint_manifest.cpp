#include "trainer/checkpoint_manifest.h"

#include <functional>
#include <numeric>

#include "core/hash.h"

namespace uqa::trainer {
namespace {

constexpr const char* kFormat = "uqa.checkpoint";
constexpr std::int64_t kVersion = 1;
constexpr const char* kChecksum = "checksum";

std::int64_t num_elements(const std::vector<std::int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

}  // namespace

std::string rank_file(int rank) { return fmt::format("rank-{}.safetensors", rank); }

std::string dtype_name(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return "F32";
    case at::kBFloat16: return "BF16";
    case at::kLong: return "I64";
    default: UQA_FAIL(ErrorCode::kInternal, "checkpoint tensor of type {}, must be float32, bfloat16 or int64", c10::toString(tensor.scalar_type()));
  }
}

std::string slice_key(const std::string& name, std::int64_t begin) { return fmt::format("{}@{}", name, begin); }

std::string Manifest::to_text() const {
  Json json{{"format", kFormat}, {"version", kVersion}, {"step", step}, {"loop", loop}, {"files", Json::object()}, {"tensors", Json::object()}};
  for (const auto& [name, file] : files) json["files"][name] = {{"hash", file.hash}, {"size_bytes", file.size_bytes}};
  for (const auto& [name, tensor] : tensors) {
    Json slices = Json::array();
    for (const auto& slice : tensor.slices) {
      Json one{{"file", slice.file}, {"offset", slice.offset}, {"shape", slice.shape}};
      if (slice.key != name) one["key"] = slice.key;
      slices.push_back(std::move(one));
    }
    json["tensors"][name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"slices", slices}};
  }
  json[kChecksum] = hash_hex(json.dump());  // keys are sorted, so a reader can repeat the text
  return json.dump(1) + "\n";
}

Manifest Manifest::read(const fs::path& path) {
  const std::string what = path.string();
  Json json = read_json(path);
  const auto stored = get<std::string>(json, kChecksum, what);
  json.erase(kChecksum);
  UQA_CHECK(hash_hex(json.dump()) == stored, ErrorCode::kData, "{} does not match its own checksum; it is corrupt", what);
  UQA_CHECK(get<std::string>(json, "format", what) == kFormat && get<std::int64_t>(json, "version", what) == kVersion, ErrorCode::kData,
            "{}: format {} version {}, this program reads {} version {}", what, json["format"].dump(), json["version"].dump(), kFormat, kVersion);
  Manifest manifest;
  manifest.step = get<std::int64_t>(json, "step", what);
  manifest.loop = get<Json>(json, "loop", what);
  const auto files = get<Json>(json, "files", what), tensors = get<Json>(json, "tensors", what);
  for (const auto& [name, file] : files.items()) {
    UQA_CHECK(fs::path(name).filename() == name, ErrorCode::kData, "{}: file name '{}' leads out of the checkpoint", what, name);
    manifest.files[name] = {.hash = get<std::string>(file, "hash", what), .size_bytes = get<std::int64_t>(file, "size_bytes", what)};
  }
  for (const auto& [name, tensor] : tensors.items()) {
    TensorEntry entry{.dtype = get<std::string>(tensor, "dtype", what), .shape = get<std::vector<std::int64_t>>(tensor, "shape", what), .slices = {}};
    for (const auto& slice : get<Json>(tensor, "slices", what)) {
      entry.slices.push_back({.file = get<std::string>(slice, "file", what),
                              .key = get_or<std::string>(slice, "key", name, what),
                              .offset = get<std::vector<std::int64_t>>(slice, "offset", what),
                              .shape = get<std::vector<std::int64_t>>(slice, "shape", what)});
    }
    manifest.tensors[name] = std::move(entry);
  }
  return manifest;
}

void check_slices(const fs::path& checkpoint, const std::string& name, const Manifest& manifest,
                  const std::map<std::string, format::SafetensorsHeader>& headers) {
  const TensorEntry& entry = manifest.tensors.at(name);
  std::int64_t covered = 0;
  for (const auto& slice : entry.slices) {
    const std::string what = (checkpoint / slice.file).string();
    UQA_CHECK(manifest.files.contains(slice.file), ErrorCode::kData, "{}: tensor {} needs it, the manifest does not list it", what, name);
    bool inside = slice.offset.size() == entry.shape.size() && slice.shape.size() == entry.shape.size();
    for (std::size_t d = 0; inside && d < entry.shape.size(); ++d) {
      inside = slice.offset[d] >= 0 && slice.shape[d] >= 0 && slice.offset[d] <= entry.shape[d] - slice.shape[d];
    }
    UQA_CHECK(inside, ErrorCode::kData, "{}: slice of tensor {} lies outside its shape {}", what, name, fmt::join(entry.shape, " x "));
    covered += num_elements(slice.shape);
    const auto header = headers.find(slice.file);
    if (header == headers.end()) continue;  // nothing is read from it here
    const auto tensor = header->second.tensors.find(slice.key);
    UQA_CHECK(tensor != header->second.tensors.end(), ErrorCode::kData, "{}: tensor {} is missing", what, slice.key);
    UQA_CHECK(tensor->second.shape == slice.shape && tensor->second.dtype == entry.dtype, ErrorCode::kData,
              "{}: tensor {} is {} {}, the manifest says {} {}", what, name, tensor->second.dtype, fmt::join(tensor->second.shape, " x "),
              entry.dtype, fmt::join(slice.shape, " x "));
  }
  UQA_CHECK(covered == num_elements(entry.shape), ErrorCode::kData, "{}: slices of tensor {} cover {} of {} elements",
            (checkpoint / kManifestName).string(), name, covered, num_elements(entry.shape));
}

}  // namespace uqa::trainer
