// models/tensor_io.h - named tensors from and to safetensors files.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "core/file.h"
#include "models/packed.h"

namespace uqa::models {

/// All tensors of a file, copied into memory of their own, on the CPU. Throws Error(kData).
[[nodiscard]] std::map<std::string, Tensor> load_tensors(const fs::path& path);
/// Calls `body` with every tensor of a file in turn, without copying it: it shows the mapped file (or, where its bytes are not aligned, a copy), is
/// valid during the call only, and must not be written. Throws Error(kData).
void for_each_tensor(const fs::path& path, const std::function<void(const std::string& name, const Tensor& tensor)>& body);
/// Writes contiguous CPU copies, atomically. Throws Error(kData).
void save_tensors(const fs::path& path, const std::map<std::string, Tensor>& tensors, const std::map<std::string, std::string>& metadata = {});

/// Parameters and buffers of `module` by name, sharing memory (as Python's state_dict does).
[[nodiscard]] std::map<std::string, Tensor> state_dict(const torch::nn::Module& module);
/// Copies `tensors` into the module's. Names and shapes must match exactly, else Error(kData) listing what is missing, left over or
/// of another shape ("<what>").
void load_state_dict(torch::nn::Module& module, const std::map<std::string, Tensor>& tensors, const std::string& what);

}  // namespace uqa::models
