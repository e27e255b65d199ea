#include "models/tensor_io.h"

#include <array>
#include <cstring>

#include "core/error.h"
#include "models/format/safetensors.h"

namespace uqa::models {
namespace {

struct DtypeName {
  const char* name;
  at::ScalarType type;
};
constexpr std::array kDtypes{DtypeName{"F32", at::kFloat}, DtypeName{"BF16", at::kBFloat16}, DtypeName{"F16", at::kHalf},
                             DtypeName{"F64", at::kDouble}, DtypeName{"I64", at::kLong},     DtypeName{"I32", at::kInt},
                             DtypeName{"I16", at::kShort},  DtypeName{"I8", at::kChar},      DtypeName{"U8", at::kByte},
                             DtypeName{"BOOL", at::kBool}};

at::ScalarType dtype_of(const std::string& name, const std::string& what) {
  for (const auto& dtype : kDtypes) {
    if (name == dtype.name) return dtype.type;
  }
  UQA_FAIL(ErrorCode::kData, "{}: dtype = {}, is not one that can be read; convert the file", what, name);
}

std::string name_of(at::ScalarType type, const std::string& what) {
  for (const auto& dtype : kDtypes) {
    if (type == dtype.type) return dtype.name;
  }
  UQA_FAIL(ErrorCode::kInternal, "{}: dtype = {}, cannot be written to safetensors", what, c10::toString(type));
}

std::string join(const std::vector<std::string>& parts) {
  constexpr std::size_t kShown = 8;  // a wrong file would list hundreds
  std::string text;
  for (std::size_t i = 0; i < parts.size() && i < kShown; ++i) text += (i ? ", " : "") + parts[i];
  if (parts.size() > kShown) text += fmt::format(", and {} more", parts.size() - kShown);
  return text;
}

}  // namespace

void for_each_tensor(const fs::path& path, const std::function<void(const std::string& name, const Tensor& tensor)>& body) {
  const MappedFile file(path);
  const auto header = format::parse_safetensors(file.bytes(), path.string());
  for (const auto& [name, info] : header.tensors) {
    const auto type = dtype_of(info.dtype, fmt::format("{}: tensor {}", path.string(), name));
    const auto* bytes = file.bytes().data() + info.begin;
    const bool aligned = reinterpret_cast<std::uintptr_t>(bytes) % c10::elementSize(type) == 0;
    if (aligned && info.end > info.begin) {
      body(name, at::from_blob(const_cast<std::byte*>(bytes), info.shape, at::TensorOptions().dtype(type)));
    } else {
      auto tensor = at::empty(info.shape, type);
      if (info.end > info.begin) std::memcpy(tensor.data_ptr(), bytes, info.end - info.begin);
      body(name, tensor);
    }
  }
}

std::map<std::string, Tensor> load_tensors(const fs::path& path) {
  std::map<std::string, Tensor> tensors;
  for_each_tensor(path, [&](const std::string& name, const Tensor& tensor) { tensors.emplace(name, tensor.clone()); });
  return tensors;
}

void save_tensors(const fs::path& path, const std::map<std::string, Tensor>& tensors, const std::map<std::string, std::string>& metadata) {
  std::vector<Tensor> copies;  // keeps the bytes alive until the file is written
  std::vector<format::TensorBytes> parts;
  copies.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) {
    copies.push_back(tensor.detach().cpu().contiguous());
    const auto& copy = copies.back();
    parts.push_back({.name = name,
                     .dtype = name_of(copy.scalar_type(), fmt::format("{}: tensor {}", path.string(), name)),
                     .shape = copy.sizes().vec(),
                     .bytes = {static_cast<const std::byte*>(copy.data_ptr()), copy.nbytes()}});
  }
  format::write_safetensors(path, parts, metadata);
}

std::map<std::string, Tensor> state_dict(const torch::nn::Module& module) {
  std::map<std::string, Tensor> tensors;
  for (const auto& item : module.named_parameters()) tensors.emplace(item.key(), item.value().detach());
  for (const auto& item : module.named_buffers()) tensors.emplace(item.key(), item.value().detach());
  return tensors;
}

void load_state_dict(torch::nn::Module& module, const std::map<std::string, Tensor>& tensors, const std::string& what) {
  auto own = state_dict(module);
  std::vector<std::string> missing, left_over, reshaped;
  for (const auto& [name, tensor] : own) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) {
      missing.push_back(name);
    } else if (found->second.sizes() != tensor.sizes()) {
      reshaped.push_back(fmt::format("{} [{}] instead of [{}]", name, fmt::join(found->second.sizes(), ", "), fmt::join(tensor.sizes(), ", ")));
    }
  }
  for (const auto& [name, tensor] : tensors) {
    if (!own.contains(name)) left_over.push_back(name);
  }
  if (!missing.empty() || !left_over.empty() || !reshaped.empty()) {
    std::vector<std::string> reasons;
    if (!missing.empty()) reasons.push_back("missing: " + join(missing));
    if (!left_over.empty()) reasons.push_back("left over: " + join(left_over));
    if (!reshaped.empty()) reasons.push_back("of another shape: " + join(reshaped));
    UQA_FAIL(ErrorCode::kData, "{}: tensors do not fit the model, {}; give the weights of this model or its settings", what,
             fmt::join(reasons, "; "));
  }
  const at::NoGradGuard no_grad;
  for (auto& [name, tensor] : own) tensor.copy_(tensors.at(name));
}

}  // namespace uqa::models
