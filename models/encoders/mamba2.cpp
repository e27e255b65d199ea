#include "models/encoders/mamba2.h"

#include <cmath>

#include "core/error.h"
#include "models/init.h"
#include "models/layers/causal_conv.h"
#include "models/layers/dropout.h"
#include "models/layers/gated_norm.h"
#include "models/layers/norm.h"
#include "models/layers/ssd_scan.h"
#include "models/parallel/linear.h"
#include "models/parallel/norm.h"
#include "models/recompute.h"

// T packed rows, H width, I inner width, C channels of the convolution (x, B and C), K taps, M heads of the scan; I, C and M of this rank where
// heads are split over ranks.

namespace uqa::models {
namespace {

SsdSizes sizes_of(const UserModelConfig& config) {
  return {.num_heads = config.mamba2.expand * config.hidden / config.mamba2.head_dim,
          .head_dim = config.mamba2.head_dim,
          .num_groups = config.mamba2.num_groups,
          .state_size = config.mamba2.state_size,
          .chunk = config.mamba2.chunk};
}

/// What a rank has of the scan: its heads, and the groups whose B and C they read.
struct HeadSplit {
  SsdSizes full, own;
  SliceRange heads, groups;
  comm::Communicator group;  ///< ranks that share a group of heads: B, C and the norm's statistics; a group of one where each has whole groups
};

/// Whole groups on each rank, or several ranks to a group. Collective where ranks share groups. Error(kConfig) with both numbers.
HeadSplit split_heads(const UserModelConfig& config, const TensorParallel& tp) {
  HeadSplit split{.full = sizes_of(config), .own = {}, .heads = {}, .groups = {}, .group = {}};
  split.heads = cut(split.full.num_heads, tp, "heads of mamba2 (mamba2.expand * hidden / mamba2.head_dim)");
  const auto groups = cut_or_share(split.full.num_groups, tp, "model.mamba2.num_groups", "tp_group");
  split.groups = groups.range;
  split.group = groups.sharers;
  split.own = split.full;
  split.own.num_heads = split.heads.length;
  split.own.num_groups = split.groups.length;
  return split;
}

/// This rank's channels, behind `before` others: x of its heads, B and C of its groups.
std::vector<Stretch> channels_of(const HeadSplit& split, std::int64_t before) {
  const auto x = widened(split.heads, split.full.head_dim), bc = widened(split.groups, split.full.state_size);
  const auto b_begin = before + split.full.inner(), c_begin = b_begin + split.full.num_groups * split.full.state_size;
  return {{.range = {.begin = before + x.begin, .length = x.length}, .sharers = {}},
          {.range = {.begin = b_begin + bc.begin, .length = bc.length}, .sharers = split.group},
          {.range = {.begin = c_begin + bc.begin, .length = bc.length}, .sharers = split.group}};
}

/// Parameters of torch.nn.Conv1d with groups = channels.
struct DepthwiseConvImpl : SlicedModule {
  DepthwiseConvImpl(const HeadSplit& split, std::int64_t num_taps, const TensorParallel& tp)
      : weight(add_sliced("weight", {split.full.channels(), 1, num_taps}, 0, channels_of(split, 0), tp)),
        bias(add_sliced("bias", {split.full.channels()}, 0, channels_of(split, 0), tp)) {}
  SlicedParameter weight, bias;
};
TORCH_MODULE(DepthwiseConv);

/// The rows of in_proj: gate z, channels, time steps.
struct InProjectionImpl : SlicedModule {
  InProjectionImpl(const UserModelConfig& config, const HeadSplit& split, const TensorParallel& tp) {
    const auto& full = split.full;
    const auto z = widened(split.heads, full.head_dim);
    std::vector<Stretch> rows{{.range = z, .sharers = {}}};
    for (const auto& stretch : channels_of(split, full.inner())) rows.push_back(stretch);
    rows.push_back({.range = {.begin = full.inner() + full.channels() + split.heads.begin, .length = split.heads.length}, .sharers = {}});
    weight = add_sliced("weight", {full.inner() + full.channels() + full.num_heads, config.hidden}, 0, rows, tp);
  }
  SlicedParameter weight;
};
TORCH_MODULE(InProjection);

struct HeadNormImpl : SlicedModule {
  HeadNormImpl(const HeadSplit& split, double eps_in, const TensorParallel& tp)
      : weight(add_sliced("weight", {split.full.inner()}, 0, {{.range = widened(split.heads, split.full.head_dim), .sharers = {}}}, tp)),
        num_groups(split.own.num_groups),
        eps(eps_in),
        group(split.group) {}
  [[nodiscard]] Tensor forward(const Tensor& y_TI, const Tensor& z_TI) const {
    if (group.size() == 1) return gated_rms_norm(y_TI, z_TI, weight.tensor(), num_groups, eps);
    return parallel_rms_norm(y_TI * at::silu(z_TI), eps, group) * weight.tensor();
  }
  SlicedParameter weight;
  std::int64_t num_groups;
  double eps;
  comm::Communicator group;
};
TORCH_MODULE(HeadNorm);

struct MixerImpl : SlicedModule {
  MixerImpl(const UserModelConfig& config, const HeadSplit& split, const TensorParallel& tp) : sizes(split.own), comm(tp.comm) {
    const auto per_head = [&](const char* name) { return add_sliced(name, {split.full.num_heads}, 0, {{.range = split.heads, .sharers = {}}}, tp); };
    in_proj = register_module("in_proj", InProjection(config, split, tp));
    conv1d = register_module("conv1d", DepthwiseConv(split, config.mamba2.conv_kernel, tp));
    dt_bias = per_head("dt_bias");
    a_log = per_head("A_log");
    skip = per_head("D");
    norm = register_module("norm", HeadNorm(split, config.norm_eps, tp));
    out_proj = register_module("out_proj", RowParallelLinear(split.full.inner(), config.hidden, Bias::kNo, widened(split.heads, split.full.head_dim), tp));
  }

  [[nodiscard]] Tensor forward(const Tensor& x_TH, const PackedLayout& layout) {
    const auto weights = local_tensors({&in_proj->weight, &conv1d->weight, &conv1d->bias});
    // Under bf16 autocast the projection's output is bfloat16; what follows is computed in float32.
    const auto projected = at::linear(copy_to(x_TH, comm), weights[0]).to(at::kFloat).split_with_sizes({sizes.inner(), sizes.channels(), sizes.num_heads}, 1);
    const auto xbc_TC = causal_conv_silu(projected[1], weights[1], weights[2], layout);
    const auto dt_TM = at::softplus(projected[2] + dt_bias.tensor());
    const auto y_TI = ssd_scan(xbc_TC, dt_TM, -a_log.tensor().exp(), skip.tensor(), layout, sizes);
    return out_proj->forward(norm->forward(y_TI, projected[0]));
  }

  SsdSizes sizes;  ///< of this rank
  InProjection in_proj{nullptr};
  DepthwiseConv conv1d{nullptr};
  SlicedParameter dt_bias, a_log, skip;
  HeadNorm norm{nullptr};
  RowParallelLinear out_proj{nullptr};
  comm::Communicator comm;
};
TORCH_MODULE(Mixer);

class LayerImpl : public torch::nn::Module {
 public:
  LayerImpl(const UserModelConfig& config, std::int64_t index, const HeadSplit& split, const TensorParallel& tp)
      : norm(register_module("norm", RmsNorm(config.hidden, config.norm_eps))),
        mixer(register_module("mixer", Mixer(config, split, tp))),
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

Mamba2Impl::Mamba2Impl(const UserModelConfig& config, const TensorParallel& tp) : modules_(std::make_shared<Modules>()) {
  const auto split = split_heads(config, tp);
  const auto layers = register_module("layers", std::make_shared<Names>());
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    modules_->layers.push_back(layers->register_module(std::to_string(i), Layer(config, i, split, tp)));
  }
}

Tensor Mamba2Impl::forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context) {
  auto state_TH = x_TH;
  const auto shared = std::make_shared<const PackedLayout>(layout);  // a recomputed layer outlives the caller's
  for (std::size_t i = 0; i < modules_->layers.size(); ++i) {
    auto& layer = modules_->layers[i];
    const auto run = [layer, shared, context](const Tensor& x) mutable { return layer->forward(x, *shared, context); };
    state_TH = watched(i, [&] { return run_layer(run, state_TH, *layer); });
  }
  return state_TH;
}

std::vector<std::vector<Tensor>> Mamba2Impl::layer_parameters() const { return parameters_of_each(modules_->layers); }

void Mamba2Impl::init_weights(std::uint64_t seed, const std::string& prefix) {
  const at::NoGradGuard no_grad;
  const double residual_scale = 1 / std::sqrt(static_cast<double>(modules_->layers.size()));
  for (std::size_t i = 0; i < modules_->layers.size(); ++i) {
    const auto& layer = modules_->layers[i];
    const auto& mixer = layer->mixer;
    const auto name = prefix + "layers." + std::to_string(i) + ".mixer.";
    mixer->in_proj->weight.init([&](const Tensor& full) { init_linear_default_(full, Tensor(), seed, name + "in_proj"); });
    const double conv_bound = 1 / std::sqrt(static_cast<double>(mixer->conv1d->weight.full_shape()[2]));  // torch.nn.Conv1d's default
    mixer->conv1d->weight.init([&](const Tensor& full) { init_uniform_(full, seed, name + "conv1d.weight", conv_bound); });
    mixer->conv1d->bias.init([&](const Tensor& full) { init_uniform_(full, seed, name + "conv1d.bias", conv_bound); });
    mixer->dt_bias.init([&](const Tensor& full) { init_dt_bias_(full, seed, name + "dt_bias"); });
    mixer->a_log.init([&](const Tensor& full) { init_a_log_(full, seed, name + "A_log"); });
    mixer->skip.tensor().fill_(1);
    const double out_bound = residual_scale / std::sqrt(static_cast<double>(mixer->out_proj->weight.full_shape()[1]));
    mixer->out_proj->weight.init([&](const Tensor& full) { init_uniform_(full, seed, name + "out_proj.weight", out_bound); });
    mixer->norm->weight.tensor().fill_(1);
    layer->norm->weight.fill_(1);
  }
}

}  // namespace uqa::models
