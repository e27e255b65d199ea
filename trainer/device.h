// trainer/device.h - models and batches on the device that this rank computes on. Initial weights, packed batches and files are made in host memory and copied
// here; on the CPU a tensor is its own copy. Everything is local: no collective.
//
//   model->init_weights(seed);                                  // on the CPU, so that weights do not depend on the device
//   move_to(*model, mesh.device());                             // before anyone holds their gradients
//   const auto batch = to_device(wrap_user_batch(packed), mesh.device());
#pragma once

#include <cstdint>
#include <vector>

#include "models/llm/decoder.h"
#include "models/user_model.h"
#include "trainer/prompt_tree.h"

namespace uqa::trainer {

/// Moves parameters, buffers and what else the module computes with (torch::nn::Module::to); tensors that share their identity move with them.
void move_to(torch::nn::Module& module, const at::Device& device);
/// Frozen weights, too. Error(kInternal) where they stay behind.
void move_to(models::LlmImpl& llm, const at::Device& device);

[[nodiscard]] at::Device device_of(const models::UserModelImpl& model);
[[nodiscard]] at::Device device_of(const models::LlmImpl& llm);

/// Features on `device`; the layout is plain memory of the host.
[[nodiscard]] models::UserBatch to_device(models::UserBatch batch, const at::Device& device);
/// All tensors on `device`; blocks are plain memory of the host.
[[nodiscard]] PackedPrompts to_device(PackedPrompts packed, const at::Device& device);
/// int64 [values.size()] on `device`.
[[nodiscard]] Tensor indices_on(const std::vector<std::int64_t>& values, const at::Device& device);

/// A contiguous copy in host memory: later writes to `tensor` do not show in it, on any device.
[[nodiscard]] Tensor host_copy(const Tensor& tensor);

/// Most bytes of the device's memory that tensors have taken at once so far. Error(kInternal) for the CPU.
[[nodiscard]] std::int64_t peak_device_bytes(const at::Device& device);

}  // namespace uqa::trainer
