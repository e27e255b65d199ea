#include "models/encoders/mamba2.h"

#include <cmath>

#include "models/init.h"
#include "models/layers/causal_conv.h"
#include "models/layers/dropout.h"
#include "models/layers/gated_norm.h"
#include "models/layers/linear.h"
#include "models/layers/norm.h"
#include "models/layers/ssd_scan.h"

// T packed rows, H width, I inner width, C channels of the convolution (x, B and C), K taps, M heads of the scan.

namespace uqa::models {
namespace {

SsdSizes sizes_of(const UserModelConfig& config) {
  return {.num_heads = config.mamba2.expand * config.hidden / config.mamba2.head_dim,
          .head_dim = config.mamba2.head_dim,
          .num_groups = config.mamba2.num_groups,
          .state_size = config.mamba2.state_size,
          .chunk = config.mamba2.chunk};
}

/// Parameters of torch.nn.Conv1d with groups = channels.
struct DepthwiseConvImpl : torch::nn::Module {
  DepthwiseConvImpl(std::int64_t num_channels, std::int64_t num_taps)
      : weight(register_parameter("weight", at::zeros({num_channels, 1, num_taps}))), bias(register_parameter("bias", at::zeros({num_channels}))) {}
  Tensor weight, bias;
};
TORCH_MODULE(DepthwiseConv);

struct MixerImpl : torch::nn::Module {
  explicit MixerImpl(const UserModelConfig& config)
      : sizes(sizes_of(config)),
        in_proj(register_module("in_proj", Linear(config.hidden, sizes.inner() + sizes.channels() + sizes.num_heads, Bias::kNo))),
        conv1d(register_module("conv1d", DepthwiseConv(sizes.channels(), config.mamba2.conv_kernel))),
        dt_bias(register_parameter("dt_bias", at::zeros({sizes.num_heads}))),
        a_log(register_parameter("A_log", at::zeros({sizes.num_heads}))),
        skip(register_parameter("D", at::ones({sizes.num_heads}))),
        norm(register_module("norm", GatedRmsNorm(sizes.inner(), sizes.num_groups, config.norm_eps))),
        out_proj(register_module("out_proj", Linear(sizes.inner(), config.hidden, Bias::kNo))) {}

  [[nodiscard]] Tensor forward(const Tensor& x_TH, const PackedLayout& layout) {
    // Under bf16 autocast the projection's output is bfloat16; what follows is computed in float32.
    const auto projected = in_proj->forward(x_TH).to(at::kFloat).split_with_sizes({sizes.inner(), sizes.channels(), sizes.num_heads}, 1);
    const auto xbc_TC = causal_conv_silu(projected[1], conv1d->weight, conv1d->bias, layout);
    const auto dt_TM = at::softplus(projected[2] + dt_bias);
    const auto y_TI = ssd_scan(xbc_TC, dt_TM, -a_log.exp(), skip, layout, sizes);
    return out_proj->forward(norm->forward(y_TI, projected[0]));
  }

  SsdSizes sizes;  // first: the modules are sized by it
  Linear in_proj;
  DepthwiseConv conv1d;
  Tensor dt_bias, a_log, skip;
  GatedRmsNorm norm;
  Linear out_proj;
};
TORCH_MODULE(Mixer);

class LayerImpl : public torch::nn::Module {
 public:
  LayerImpl(const UserModelConfig& config, std::int64_t index)
      : norm(register_module("norm", RmsNorm(config.hidden, config.norm_eps))),
        mixer(register_module("mixer", Mixer(config))),
        index_(index),
        dropout_(config.dropout) {}

  [[nodiscard]] Tensor forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context) {
    auto mixed_TH = mixer->forward(norm->forward(x_TH), layout);
    if (is_training()) mixed_TH = dropout(mixed_TH, dropout_, dropout_key(context, index_, DropoutSite::kFfnOutput), layout);
    return x_TH + mixed_TH;
  }

  RmsNorm norm;
  Mixer mixer;

 private:
  std::int64_t index_;
  double dropout_;
};
TORCH_MODULE(Layer);

/// Only there to give parameters the reference's names.
struct Names : torch::nn::Module {};

/// dt_bias such that softplus(dt_bias) is log-uniform in [1e-3, 1e-1].
void init_dt_bias_(const Tensor& dt_bias, std::uint64_t seed, const std::string& name) {
  constexpr double kLeast = 1e-3, kMost = 1e-1, kFloor = 1e-4;
  init_uniform_(dt_bias, seed, name, std::log(kMost / kLeast) / 2);
  const auto dt = (dt_bias + std::log(kMost * kLeast) / 2).exp().clamp_min(kFloor);
  dt_bias.copy_(dt + (-(-dt).expm1()).log());  // inverse of softplus
}

/// A_log such that exp(A_log) is uniform in [1, 16].
void init_a_log_(const Tensor& a_log, std::uint64_t seed, const std::string& name) {
  constexpr double kLeast = 1, kMost = 16;
  init_uniform_(a_log, seed, name, (kMost - kLeast) / 2);
  a_log.add_((kMost + kLeast) / 2).log_();
}

}  // namespace

struct Mamba2Impl::Modules {
  std::vector<Layer> layers;
};

Mamba2Impl::Mamba2Impl(const UserModelConfig& config) : modules_(std::make_shared<Modules>()) {
  const auto layers = register_module("layers", std::make_shared<Names>());
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    modules_->layers.push_back(layers->register_module(std::to_string(i), Layer(config, i)));
  }
}

Tensor Mamba2Impl::forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context) {
  auto state_TH = x_TH;
  for (auto& layer : modules_->layers) state_TH = layer->forward(state_TH, layout, context);
  return state_TH;
}

void Mamba2Impl::init_weights(std::uint64_t seed, const std::string& prefix) {
  const at::NoGradGuard no_grad;
  const double residual_scale = 1 / std::sqrt(static_cast<double>(modules_->layers.size()));
  for (std::size_t i = 0; i < modules_->layers.size(); ++i) {
    const auto& layer = modules_->layers[i];
    const auto& mixer = layer->mixer;
    const auto name = prefix + "layers." + std::to_string(i) + ".mixer.";
    init_linear_default_(mixer->in_proj->weight, Tensor(), seed, name + "in_proj");
    const double conv_bound = 1 / std::sqrt(static_cast<double>(mixer->conv1d->weight.size(2)));  // torch.nn.Conv1d's default
    init_uniform_(mixer->conv1d->weight, seed, name + "conv1d.weight", conv_bound);
    init_uniform_(mixer->conv1d->bias, seed, name + "conv1d.bias", conv_bound);
    init_dt_bias_(mixer->dt_bias, seed, name + "dt_bias");
    init_a_log_(mixer->a_log, seed, name + "A_log");
    mixer->skip.fill_(1);
    const double out_bound = residual_scale / std::sqrt(static_cast<double>(mixer->out_proj->weight.size(1)));
    init_uniform_(mixer->out_proj->weight, seed, name + "out_proj.weight", out_bound);
    mixer->norm->weight.fill_(1);
    layer->norm->weight.fill_(1);
  }
}

}  // namespace uqa::models
