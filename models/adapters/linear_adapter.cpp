#include "models/adapters/linear_adapter.h"

#include "core/error.h"
#include "models/init.h"

// B users, S histories, H width of the states, L width of the LLM.

namespace uqa::models {

LinearAdapterImpl::LinearAdapterImpl(const AdapterConfig& config)
    : AdapterImpl(config, config.kind == "last" ? StateView::kLast : StateView::kMean),
      up_proj_(register_module("up_proj", torch::nn::Linear(config.encoder_hidden, config.llm_hidden))) {}

void LinearAdapterImpl::init_weights(std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  init_linear_default_(up_proj_->weight, up_proj_->bias, seed, "adapter.up_proj");
}

void LinearAdapterImpl::init_whitened(std::uint64_t seed, const Tensor& means_SH, double rms) {
  UQA_CHECK(means_SH.dim() == 2 && means_SH.size(0) >= 2 && means_SH.size(1) == up_proj_->weight.size(1), ErrorCode::kInternal,
            "adapter: {} mean states of width {}, needs at least 2 of width {}", means_SH.size(0), means_SH.size(1), up_proj_->weight.size(1));
  const at::NoGradGuard no_grad;
  init_weights(seed);
  constexpr double kFloor = 1e-2;
  const auto means = means_SH.cpu().to(at::kDouble);  // few rows: the decomposition is quickest there
  const auto center_H = means.mean(0);
  const auto centered_SH = means - center_H;
  const auto covariance_HH = at::mm(centered_SH.t(), centered_SH) / static_cast<double>(means.size(0));
  const auto [values_H, vectors_HH] = at::linalg_eigh(covariance_HH);
  const double largest = values_H.max().item<double>();
  if (!(largest > 0)) return;
  const auto whiten_HH = at::mm(vectors_HH * (values_H.clamp_min(0) + kFloor * largest).rsqrt(), vectors_HH.t());
  const auto device = up_proj_->weight.device();
  center_H_ = center_H.to(at::kFloat).to(device);
  whiten_HH_ = whiten_HH.to(at::kFloat).to(device);
  start_from(up_proj_->weight.clone(), means_SH, rms);
}

Tensor LinearAdapterImpl::inputs_of(const Tensor& means_SH) const {
  return center_H_.defined() ? at::mm(means_SH - center_H_, whiten_HH_) : means_SH;
}

void LinearAdapterImpl::start_from(const Tensor& weight_LH, const Tensor& means_SH, double rms) {
  const at::NoGradGuard no_grad;
  const auto device = up_proj_->weight.device();
  const double size = at::mm(inputs_of(means_SH.to(device)), weight_LH.to(device).to(at::kFloat).t()).to(at::kDouble).square().mean().sqrt().item<double>();
  UQA_CHECK(size > 0, ErrorCode::kNumeric, "adapter: the soft tokens of {} users are all 0; choose another --adapter.init", means_SH.size(0));
  up_proj_->weight.copy_(weight_LH).mul_(rms / size);
  up_proj_->bias.zero_();
}

void LinearAdapterImpl::to(torch::Device device, bool non_blocking) {
  AdapterImpl::to(device, non_blocking);
  if (!center_H_.defined()) return;
  center_H_ = center_H_.to(device, non_blocking);
  whiten_HH_ = whiten_HH_.to(device, non_blocking);
}

std::pair<Tensor, Tensor> LinearAdapterImpl::folded() const {
  const at::NoGradGuard no_grad;
  const auto weight_LH = up_proj_->weight.detach(), bias_L = up_proj_->bias.detach();
  if (!center_H_.defined()) return {weight_LH.clone(), bias_L.clone()};
  const auto folded_LH = at::mm(weight_LH.to(at::kDouble), whiten_HH_.to(at::kDouble));  // the whitening matrix is symmetric
  return {folded_LH.to(at::kFloat), (bias_L.to(at::kDouble) - at::mv(folded_LH, center_H_.to(at::kDouble))).to(at::kFloat)};
}

std::map<std::string, Tensor> LinearAdapterImpl::stored() const {
  const auto [weight_LH, bias_L] = folded();
  return {{"up_proj.weight", weight_LH}, {"up_proj.bias", bias_L}};
}

Tensor LinearAdapterImpl::forward(const Tensor& states_TH, const PackedLayout& layout) {
  const auto states_BH = view() == StateView::kLast ? history_lasts(states_TH, layout) : history_means(states_TH, layout);
  return up_proj_->forward(inputs_of(states_BH)).to(at::kFloat).unsqueeze(1);
}

}  // namespace uqa::models
