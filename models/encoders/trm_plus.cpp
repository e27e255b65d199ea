#include "models/encoders/trm_plus.h"

#include <cmath>

#include "models/init.h"
#include "models/layers/dropout.h"
#include "models/layers/norm.h"
#include "models/layers/packed_attention.h"
#include "models/layers/rope.h"
#include "models/parallel/linear.h"
#include "models/recompute.h"

// T packed rows, H width, N heads, D head width, F width of the gated MLP.

namespace uqa::models {
namespace {

class RotaryAttentionImpl : public torch::nn::Module {
 public:
  RotaryAttentionImpl(const UserModelConfig& config, const TensorParallel& tp)
      : heads_(cut(config.num_heads, tp, "model.num_heads")), head_dim_(config.hidden / config.num_heads), dropout_(config.attention_dropout), comm_(tp.comm) {
    const auto features = widened(heads_, head_dim_);
    const auto column = [&] { return ColumnParallelLinear(config.hidden, config.hidden, Bias::kNo, features, tp); };
    q_proj = register_module("q_proj", column());
    k_proj = register_module("k_proj", column());
    v_proj = register_module("v_proj", column());
    o_proj = register_module("o_proj", RowParallelLinear(config.hidden, config.hidden, Bias::kNo, features, tp));
  }

  [[nodiscard]] Tensor forward(const Tensor& x_TH, const PackedLayout& layout, const RopeAngles& angles, std::uint64_t key) {
    const auto in_TH = copy_to(x_TH, comm_);
    const auto heads = [&](const ColumnParallelLinear& projection) { return projection->forward(in_TH).view({x_TH.size(0), heads_.length, head_dim_}); };
    PackedDropout drop;
    if (is_training() && dropout_ > 0) drop = {.p = dropout_, .key = key, .sample_ids = layout.sample_ids, .first_head = heads_.begin};
    const auto out_TND = packed_attention(apply_rope(heads(q_proj), angles), apply_rope(heads(k_proj), angles), heads(v_proj),
                                          layout.causal_blocks(), 1 / std::sqrt(static_cast<double>(head_dim_)), drop);
    return o_proj->forward(out_TND.flatten(1));
  }

  ColumnParallelLinear q_proj{nullptr}, k_proj{nullptr}, v_proj{nullptr};
  RowParallelLinear o_proj{nullptr};

 private:
  SliceRange heads_;  ///< of this rank
  std::int64_t head_dim_;
  double dropout_;
  comm::Communicator comm_;
};
TORCH_MODULE(RotaryAttention);

class GatedMlpImpl : public torch::nn::Module {
 public:
  GatedMlpImpl(const UserModelConfig& config, const TensorParallel& tp) : comm_(tp.comm) {
    const auto inner = cut(config.resolved_inner(), tp, "model.inner");
    const auto column = [&] { return ColumnParallelLinear(config.hidden, config.resolved_inner(), Bias::kNo, inner, tp); };
    up_proj_g = register_module("up_proj_g", column());
    up_proj_x = register_module("up_proj_x", column());
    down_proj = register_module("down_proj", RowParallelLinear(config.resolved_inner(), config.hidden, Bias::kNo, inner, tp));
  }

  [[nodiscard]] Tensor forward(const Tensor& x_TH) {
    const auto in_TH = copy_to(x_TH, comm_);
    return down_proj->forward(at::silu(up_proj_g->forward(in_TH)) * up_proj_x->forward(in_TH));
  }

  ColumnParallelLinear up_proj_g{nullptr}, up_proj_x{nullptr};
  RowParallelLinear down_proj{nullptr};

 private:
  comm::Communicator comm_;
};
TORCH_MODULE(GatedMlp);

class LayerImpl : public torch::nn::Module {
 public:
  LayerImpl(const UserModelConfig& config, std::int64_t index, const TensorParallel& tp)
      : norm1(register_module("norm1", RmsNorm(config.hidden, config.norm_eps))),
        attn(register_module("attn", RotaryAttention(config, tp))),
        norm2(register_module("norm2", RmsNorm(config.hidden, config.norm_eps))),
        mlp(register_module("mlp", GatedMlp(config, tp))),
        index_(index),
        dropout_(config.dropout) {}

  [[nodiscard]] Tensor forward(const Tensor& x_TH, const PackedLayout& layout, const RopeAngles& angles, const DropoutContext& context) {
    const auto drop = [&](const Tensor& y, DropoutSite site) {
      return is_training() ? dropout(y, dropout_, dropout_key(context, index_, site), layout) : y;
    };
    const auto attended_TH = attn->forward(norm1->forward(x_TH), layout, angles, dropout_key(context, index_, DropoutSite::kAttention));
    const auto y_TH = x_TH + drop(attended_TH, DropoutSite::kAttentionOutput);
    return y_TH + drop(mlp->forward(norm2->forward(y_TH)), DropoutSite::kFfnOutput);
  }

  RmsNorm norm1;
  RotaryAttention attn;
  RmsNorm norm2;
  GatedMlp mlp;

 private:
  std::int64_t index_;
  double dropout_;
};
TORCH_MODULE(Layer);

/// Only there to give parameters the reference's names.
struct Names : torch::nn::Module {};

}  // namespace

struct TrmPlusImpl::Modules {
  std::vector<Layer> layers;
  std::int64_t head_dim = 0;
  double rope_base = 0;
};

TrmPlusImpl::TrmPlusImpl(const UserModelConfig& config, const TensorParallel& tp) : modules_(std::make_shared<Modules>()) {
  const auto layers = register_module("layers", std::make_shared<Names>());
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    modules_->layers.push_back(layers->register_module(std::to_string(i), Layer(config, i, tp)));
  }
  modules_->head_dim = config.hidden / config.num_heads;
  modules_->rope_base = config.rope_base;
}

Tensor TrmPlusImpl::forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context) {
  const auto angles = rope_angles(layout.positions(x_TH.device()), modules_->head_dim, modules_->rope_base);
  auto state_TH = x_TH;
  const auto shared = std::make_shared<const PackedLayout>(layout);  // a recomputed layer outlives the caller's
  for (std::size_t i = 0; i < modules_->layers.size(); ++i) {
    auto& layer = modules_->layers[i];
    const auto run = [layer, shared, angles, context](const Tensor& x) mutable { return layer->forward(x, *shared, angles, context); };
    state_TH = watched(i, [&] { return run_layer(run, state_TH, *layer); });
  }
  return state_TH;
}

std::vector<std::vector<Tensor>> TrmPlusImpl::layer_parameters() const { return parameters_of_each(modules_->layers); }

void TrmPlusImpl::init_weights(std::uint64_t seed, const std::string& prefix) {
  constexpr double kStd = 0.02;
  const double residual_std = kStd / std::sqrt(2.0 * static_cast<double>(modules_->layers.size()));
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < modules_->layers.size(); ++i) {
    const auto& layer = modules_->layers[i];
    const auto name = prefix + "layers." + std::to_string(i) + ".";
    const auto normal = [&](const auto& linear, const char* part, double std_dev) {
      linear->weight.init([&](const Tensor& full) { init_normal_(full, seed, name + part + ".weight", std_dev); });
    };
    normal(layer->attn->q_proj, "attn.q_proj", kStd);
    normal(layer->attn->k_proj, "attn.k_proj", kStd);
    normal(layer->attn->v_proj, "attn.v_proj", kStd);
    normal(layer->attn->o_proj, "attn.o_proj", residual_std);
    normal(layer->mlp->up_proj_g, "mlp.up_proj_g", kStd);
    normal(layer->mlp->up_proj_x, "mlp.up_proj_x", kStd);
    normal(layer->mlp->down_proj, "mlp.down_proj", residual_std);
    layer->norm1->weight.fill_(1);
    layer->norm2->weight.fill_(1);
  }
}

}  // namespace uqa::models
