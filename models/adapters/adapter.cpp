#include "models/adapters/adapter.h"

#include "core/error.h"
#include "models/init.h"
#include "models/layers/no_autocast.h"

#include <ATen/Parallel.h>

// T packed rows of B sequences, H width.

namespace uqa::models {
namespace {

struct Starts : torch::CustomClassHolder {
  std::vector<std::int64_t> cu_seqlens;
  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(cu_seqlens.size()) - 1; }
};

/// Mean of every sequence's rows.
struct SequenceMean : torch::autograd::Function<SequenceMean> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const c10::intrusive_ptr<Starts>& starts) {
    const NoAutocast no_autocast;
    const auto x_TH = x.to(at::kFloat).contiguous();
    const auto width = x_TH.size(1);
    auto mean_BH = at::zeros({starts->size(), width}, x_TH.options());
    const auto* in = x_TH.const_data_ptr<float>();
    auto* out = mean_BH.mutable_data_ptr<float>();
    at::parallel_for(0, starts->size(), 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t b = first; b < last; ++b) {
        const auto begin = starts->cu_seqlens[static_cast<std::size_t>(b)], end = starts->cu_seqlens[static_cast<std::size_t>(b) + 1];
        float* mean = out + b * width;
        for (auto t = begin; t < end; ++t) {
          for (std::int64_t j = 0; j < width; ++j) mean[j] += in[t * width + j];
        }
        for (std::int64_t j = 0; j < width; ++j) mean[j] /= static_cast<float>(end - begin);
      }
    });
    ctx->saved_data["starts"] = c10::IValue::make_capsule(starts);
    ctx->saved_data["type"] = static_cast<std::int64_t>(x.scalar_type());
    return mean_BH;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grad) {
    const NoAutocast no_autocast;
    const auto starts = c10::static_intrusive_pointer_cast<Starts>(ctx->saved_data["starts"].toCapsule());
    auto lengths_B = at::empty({starts->size()}, at::kLong);
    auto* lengths = lengths_B.mutable_data_ptr<std::int64_t>();
    for (std::int64_t b = 0; b < starts->size(); ++b) {
      lengths[b] = starts->cu_seqlens[static_cast<std::size_t>(b) + 1] - starts->cu_seqlens[static_cast<std::size_t>(b)];
    }
    const auto share_BH = grad[0] / lengths_B.unsqueeze(1);
    return {share_BH.repeat_interleave(lengths_B, 0).to(static_cast<at::ScalarType>(ctx->saved_data["type"].toInt())), {}};
  }
};

}  // namespace

LinearMeanAdapterImpl::LinearMeanAdapterImpl(std::int64_t encoder_hidden, std::int64_t llm_hidden)
    : up_proj_(register_module("up_proj", torch::nn::Linear(encoder_hidden, llm_hidden))) {}

void LinearMeanAdapterImpl::init_weights(std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  init_linear_default_(up_proj_->weight, up_proj_->bias, seed, "adapter.up_proj");
}

void LinearMeanAdapterImpl::init_whitened(std::uint64_t seed, const Tensor& means_SH, double rms) {
  UQA_CHECK(means_SH.dim() == 2 && means_SH.size(0) >= 2 && means_SH.size(1) == up_proj_->weight.size(1), ErrorCode::kInternal,
            "adapter: {} mean states of width {}, needs at least 2 of width {}", means_SH.size(0), means_SH.size(1), up_proj_->weight.size(1));
  const at::NoGradGuard no_grad;
  init_weights(seed);
  constexpr double kFloor = 1e-2;
  const auto means = means_SH.to(at::kDouble);
  const auto center_H = means.mean(0);
  const auto centered_SH = means - center_H;
  const auto covariance_HH = at::mm(centered_SH.t(), centered_SH) / static_cast<double>(means.size(0));
  const auto [values_H, vectors_HH] = at::linalg_eigh(covariance_HH);
  const double largest = values_H.max().item<double>();
  if (!(largest > 0)) return;
  const auto whiten_HH = at::mm(vectors_HH * (values_H.clamp_min(0) + kFloor * largest).rsqrt(), vectors_HH.t());
  center_H_ = center_H.to(at::kFloat);
  whiten_HH_ = whiten_HH.to(at::kFloat);
  start_from(up_proj_->weight.clone(), means_SH, rms);
}

Tensor LinearMeanAdapterImpl::inputs_of(const Tensor& means_SH) const {
  return center_H_.defined() ? at::mm(means_SH - center_H_, whiten_HH_) : means_SH;
}

void LinearMeanAdapterImpl::start_from(const Tensor& weight_LH, const Tensor& means_SH, double rms) {
  const at::NoGradGuard no_grad;
  const double size = at::mm(inputs_of(means_SH), weight_LH.to(at::kFloat).t()).to(at::kDouble).square().mean().sqrt().item<double>();
  UQA_CHECK(size > 0, ErrorCode::kNumeric, "adapter: the soft tokens of {} users are all 0; choose another --adapter.init", means_SH.size(0));
  up_proj_->weight.copy_(weight_LH).mul_(rms / size);
  up_proj_->bias.zero_();
}

std::pair<Tensor, Tensor> LinearMeanAdapterImpl::folded() const {
  const at::NoGradGuard no_grad;
  const auto weight_LH = up_proj_->weight.detach(), bias_L = up_proj_->bias.detach();
  if (!center_H_.defined()) return {weight_LH.clone(), bias_L.clone()};
  const auto folded_LH = at::mm(weight_LH.to(at::kDouble), whiten_HH_.to(at::kDouble));  // the whitening matrix is symmetric
  return {folded_LH.to(at::kFloat), (bias_L.to(at::kDouble) - at::mv(folded_LH, center_H_.to(at::kDouble))).to(at::kFloat)};
}

Tensor LinearMeanAdapterImpl::forward(const Tensor& states_TH, const PackedLayout& layout) {
  UQA_CHECK(states_TH.dim() == 2 && states_TH.size(0) == layout.num_rows(), ErrorCode::kInternal, "adapter: {} encoder states for a layout of {} rows",
            states_TH.size(0), layout.num_rows());
  auto starts = c10::make_intrusive<Starts>();
  starts->cu_seqlens = layout.cu_seqlens;
  for (std::size_t b = 0; b + 1 < layout.cu_seqlens.size(); ++b) {
    UQA_CHECK(layout.cu_seqlens[b] < layout.cu_seqlens[b + 1], ErrorCode::kData, "adapter: sequence {} is empty, at least one interaction is required", b);
  }
  const auto mean_BH = SequenceMean::apply(states_TH, starts);
  return up_proj_->forward(inputs_of(mean_BH)).to(at::kFloat).unsqueeze(1);
}

}  // namespace uqa::models
