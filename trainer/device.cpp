#include "trainer/device.h"

#include <c10/core/CachingDeviceAllocator.h>

#include "core/error.h"

namespace uqa::trainer {

void move_to(torch::nn::Module& module, const at::Device& device) {
  if (!device.is_cpu()) module.to(device);
}

void move_to(models::LlmImpl& llm, const at::Device& device) {
  move_to(static_cast<torch::nn::Module&>(llm), device);
  // Frozen weights are no parameters: only the decoder itself knows them.
  UQA_CHECK(device_of(llm).type() == device.type(), ErrorCode::kInternal, "the LLM's frozen weights are on {}, must be on {}", device_of(llm).str(), device.str());
}

at::Device device_of(const models::UserModelImpl& model) { return model.item_table().device(); }
at::Device device_of(const models::LlmImpl& llm) { return llm.head_weight().device(); }

models::UserBatch to_device(models::UserBatch batch, const at::Device& device) {
  for (auto& feature : batch.features) {
    feature.values = feature.values.to(device);
    if (feature.offsets.defined()) feature.offsets = feature.offsets.to(device);
  }
  return batch;
}

PackedPrompts to_device(PackedPrompts packed, const at::Device& device) {
  for (auto* tensor : {&packed.ids_T, &packed.positions_T, &packed.soft_rows_S, &packed.head_rows_R, &packed.prompt_heads_B, &packed.pair_rows_N, &packed.pair_tokens_N,
                       &packed.pair_continuations_N, &packed.continuation_tokens_C}) {
    if (tensor->defined()) *tensor = tensor->to(device);  // chats have no prompt heads
  }
  return packed;
}

Tensor indices_on(const std::vector<std::int64_t>& values, const at::Device& device) { return at::tensor(values, at::kLong).to(device); }

Tensor host_copy(const Tensor& tensor) {
  return tensor.detach().to(at::kCPU, tensor.scalar_type(), /*non_blocking=*/false, /*copy=*/true, at::MemoryFormat::Contiguous);
}

std::int64_t peak_device_bytes(const at::Device& device) {
  UQA_CHECK(!device.is_cpu(), ErrorCode::kInternal, "peak_device_bytes: the CPU's memory is counted as peak_rss_bytes");
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  return stats.allocated_bytes[static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
}

}  // namespace uqa::trainer
