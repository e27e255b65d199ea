#include "models/adapters/mlp_adapter.h"

#include "models/init.h"

namespace uqa::models {

void MlpAdapterImpl::init_weights(std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  init_linear_default_(fc1_->weight, fc1_->bias, seed, "adapter.fc1");
  init_linear_default_(fc2_->weight, fc2_->bias, seed, "adapter.fc2");
}

Tensor MlpAdapterImpl::forward(const Tensor& states_TH, const PackedLayout& layout) {
  return fc2_->forward(at::gelu(fc1_->forward(history_means(states_TH, layout)))).to(at::kFloat).unsqueeze(1);
}

}  // namespace uqa::models
