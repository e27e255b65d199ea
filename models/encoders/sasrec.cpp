#include "models/encoders/sasrec.h"

#include <cmath>

#include "models/init.h"
#include "models/layers/dropout.h"
#include "models/layers/norm.h"
#include "models/layers/packed_attention.h"
#include "models/parallel/linear.h"
#include "models/recompute.h"

// T packed rows, H width, N heads of this rank, D head width.

namespace uqa::models {
namespace {

/// Parameters of torch.nn.MultiheadAttention.
class SelfAttentionImpl : public SlicedModule {
 public:
  SelfAttentionImpl(const UserModelConfig& config, const TensorParallel& tp)
      : heads_(cut(config.num_heads, tp, "model.num_heads")), head_dim_(config.hidden / config.num_heads), dropout_(config.attention_dropout), comm_(tp.comm) {
    const auto features = widened(heads_, head_dim_);
    const auto rows = same_range_of_each(3, config.hidden, features);
    in_proj_weight = add_sliced("in_proj_weight", {3 * config.hidden, config.hidden}, 0, rows, tp);
    in_proj_bias = add_sliced("in_proj_bias", {3 * config.hidden}, 0, rows, tp);
    out_proj = register_module("out_proj", RowParallelLinear(config.hidden, config.hidden, Bias::kYes, features, tp));
  }

  [[nodiscard]] Tensor forward(const Tensor& x_TH, const PackedLayout& layout, std::uint64_t key) {
    const auto projected = at::linear(copy_to(x_TH, comm_), in_proj_weight.local(), in_proj_bias.local());
    const auto parts = projected.view({x_TH.size(0), 3, heads_.length, head_dim_}).unbind(1);
    PackedDropout drop;
    if (is_training() && dropout_ > 0) drop = {.p = dropout_, .key = key, .sample_ids = layout.sample_ids, .first_head = heads_.begin};
    const auto out_TND = packed_attention(parts[0], parts[1], parts[2], layout.causal_blocks(), 1 / std::sqrt(static_cast<double>(head_dim_)), drop);
    return out_proj->forward(out_TND.flatten(1));
  }

  SlicedParameter in_proj_weight, in_proj_bias;
  RowParallelLinear out_proj{nullptr};

 private:
  SliceRange heads_;  ///< of this rank
  std::int64_t head_dim_;
  double dropout_;
  comm::Communicator comm_;
};
TORCH_MODULE(SelfAttention);

class LayerImpl : public torch::nn::Module {
 public:
  LayerImpl(const UserModelConfig& config, std::int64_t index, const TensorParallel& tp)
      : inner_(cut(config.resolved_inner(), tp, "model.inner")), index_(index), dropout_(config.dropout), comm_(tp.comm) {
    self_attn = register_module("self_attn", SelfAttention(config, tp));
    linear1 = register_module("linear1", ColumnParallelLinear(config.hidden, config.resolved_inner(), Bias::kYes, inner_, tp));
    linear2 = register_module("linear2", RowParallelLinear(config.resolved_inner(), config.hidden, Bias::kYes, inner_, tp));
    norm1 = register_module("norm1", LayerNorm(config.hidden, config.norm_eps));
    norm2 = register_module("norm2", LayerNorm(config.hidden, config.norm_eps));
  }

  [[nodiscard]] Tensor forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context) {
    const auto drop = [&](const Tensor& y, DropoutSite site, std::int64_t first_feature = 0) {
      return is_training() ? dropout(y, dropout_, dropout_key(context, index_, site), layout, first_feature) : y;
    };
    const auto attended_TH = self_attn->forward(x_TH, layout, dropout_key(context, index_, DropoutSite::kAttention));
    const auto y_TH = norm1->forward(x_TH + drop(attended_TH, DropoutSite::kAttentionOutput));
    const auto inner_TF = drop(linear1->forward(copy_to(y_TH, comm_)).relu(), DropoutSite::kFfnInner, inner_.begin);
    return norm2->forward(y_TH + drop(linear2->forward(inner_TF), DropoutSite::kFfnOutput));
  }

  SelfAttention self_attn{nullptr};
  ColumnParallelLinear linear1{nullptr};
  RowParallelLinear linear2{nullptr};
  LayerNorm norm1{nullptr}, norm2{nullptr};

 private:
  SliceRange inner_;  ///< features of the FFN on this rank
  std::int64_t index_;
  double dropout_;
  comm::Communicator comm_;
};
TORCH_MODULE(Layer);

/// Only there to give parameters the reference's names.
struct Names : torch::nn::Module {};

}  // namespace

struct SasrecImpl::Modules {
  Tensor position_VH;
  std::vector<Layer> layers;
  LayerNorm norm{nullptr};
  double dropout = 0;
};

SasrecImpl::SasrecImpl(const UserModelConfig& config, const TensorParallel& tp) : modules_(std::make_shared<Modules>()) {
  const auto positions = register_module("position_embedding", std::make_shared<Names>());
  modules_->position_VH = positions->register_parameter("weight", at::zeros({config.max_len, config.hidden}));
  const auto transformer = register_module("transformer", std::make_shared<Names>());
  const auto layers = transformer->register_module("layers", std::make_shared<Names>());
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    modules_->layers.push_back(layers->register_module(std::to_string(i), Layer(config, i, tp)));
  }
  modules_->norm = register_module("norm", LayerNorm(config.hidden, config.norm_eps));
  modules_->dropout = config.dropout;
}

Tensor SasrecImpl::forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context) {
  auto state_TH = x_TH + modules_->position_VH.index_select(0, layout.positions(x_TH.device()));
  if (is_training()) state_TH = dropout(state_TH, modules_->dropout, dropout_key(context, -1, DropoutSite::kEmbedding), layout);
  const auto shared = std::make_shared<const PackedLayout>(layout);  // a recomputed layer outlives the caller's
  for (std::size_t i = 0; i < modules_->layers.size(); ++i) {
    auto& layer = modules_->layers[i];
    const auto run = [layer, shared, context](const Tensor& x) mutable { return layer->forward(x, *shared, context); };
    state_TH = watched(i, [&] { return run_layer(run, state_TH, *layer); });
  }
  return modules_->norm->forward(state_TH);
}

std::vector<std::vector<Tensor>> SasrecImpl::layer_parameters() const { return parameters_of_each(modules_->layers); }

void SasrecImpl::init_weights(std::uint64_t seed, const std::string& prefix) {
  constexpr double kStd = 0.02;
  const at::NoGradGuard no_grad;
  init_normal_(modules_->position_VH, seed, prefix + "position_embedding.weight", kStd);
  for (std::size_t i = 0; i < modules_->layers.size(); ++i) {
    const auto& layer = modules_->layers[i];
    const auto name = prefix + "transformer.layers." + std::to_string(i) + ".";
    // The reference copies one in_proj to all layers by accident (deep copies of one layer); here each layer draws its own.
    const auto normal = [&](const SlicedParameter& weight, const char* part) {
      weight.init([&](const Tensor& full) { init_normal_(full, seed, name + part + ".weight", kStd); });
    };
    layer->self_attn->in_proj_weight.init([&](const Tensor& full) { init_xavier_uniform_(full, seed, name + "self_attn.in_proj_weight"); });
    normal(layer->self_attn->out_proj->weight, "self_attn.out_proj");
    normal(layer->linear1->weight, "linear1");
    normal(layer->linear2->weight, "linear2");
    for (const auto& bias : {layer->self_attn->in_proj_bias.tensor(), layer->self_attn->out_proj->bias, layer->linear1->bias.tensor(), layer->linear2->bias}) {
      bias.zero_();
    }
    for (const auto& norm : {layer->norm1, layer->norm2}) {
      norm->weight.fill_(1);
      norm->bias.zero_();
    }
  }
  modules_->norm->weight.fill_(1);
  modules_->norm->bias.zero_();
}

}  // namespace uqa::models
