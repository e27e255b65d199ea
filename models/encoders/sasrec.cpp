#include "models/encoders/sasrec.h"

#include <cmath>

#include "models/init.h"
#include "models/layers/dropout.h"
#include "models/layers/linear.h"
#include "models/layers/norm.h"
#include "models/layers/packed_attention.h"

// T packed rows, H width, N heads, D head width.

namespace uqa::models {
namespace {

/// Parameters of torch.nn.MultiheadAttention.
class SelfAttentionImpl : public torch::nn::Module {
 public:
  explicit SelfAttentionImpl(const UserModelConfig& config)
      : in_proj_weight(register_parameter("in_proj_weight", at::zeros({3 * config.hidden, config.hidden}))),
        in_proj_bias(register_parameter("in_proj_bias", at::zeros({3 * config.hidden}))),
        out_proj(register_module("out_proj", Linear(config.hidden, config.hidden, Bias::kYes))),
        num_heads_(config.num_heads),
        dropout_(config.attention_dropout) {}

  [[nodiscard]] Tensor forward(const Tensor& x_TH, const PackedLayout& layout, std::uint64_t key) {
    const auto head_dim = x_TH.size(1) / num_heads_;
    const auto parts = at::linear(x_TH, in_proj_weight, in_proj_bias).view({x_TH.size(0), 3, num_heads_, head_dim}).unbind(1);
    PackedDropout drop;
    if (is_training() && dropout_ > 0) drop = {.p = dropout_, .key = key, .sample_ids = layout.sample_ids};
    const auto out_TND = packed_attention(parts[0], parts[1], parts[2], layout.causal_blocks(), 1 / std::sqrt(static_cast<double>(head_dim)), drop);
    return out_proj->forward(out_TND.flatten(1));
  }

  Tensor in_proj_weight, in_proj_bias;
  Linear out_proj;

 private:
  std::int64_t num_heads_;
  double dropout_;
};
TORCH_MODULE(SelfAttention);

class LayerImpl : public torch::nn::Module {
 public:
  LayerImpl(const UserModelConfig& config, std::int64_t index)
      : self_attn(register_module("self_attn", SelfAttention(config))),
        linear1(register_module("linear1", Linear(config.hidden, config.resolved_inner(), Bias::kYes))),
        linear2(register_module("linear2", Linear(config.resolved_inner(), config.hidden, Bias::kYes))),
        norm1(register_module("norm1", LayerNorm(config.hidden, config.norm_eps))),
        norm2(register_module("norm2", LayerNorm(config.hidden, config.norm_eps))),
        index_(index),
        dropout_(config.dropout) {}

  [[nodiscard]] Tensor forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context) {
    const auto drop = [&](const Tensor& y, DropoutSite site) {
      return is_training() ? dropout(y, dropout_, dropout_key(context, index_, site), layout) : y;
    };
    const auto attended_TH = self_attn->forward(x_TH, layout, dropout_key(context, index_, DropoutSite::kAttention));
    const auto y_TH = norm1->forward(x_TH + drop(attended_TH, DropoutSite::kAttentionOutput));
    const auto inner_TF = drop(linear1->forward(y_TH).relu(), DropoutSite::kFfnInner);
    return norm2->forward(y_TH + drop(linear2->forward(inner_TF), DropoutSite::kFfnOutput));
  }

  SelfAttention self_attn;
  Linear linear1, linear2;
  LayerNorm norm1, norm2;

 private:
  std::int64_t index_;
  double dropout_;
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

SasrecImpl::SasrecImpl(const UserModelConfig& config) : modules_(std::make_shared<Modules>()) {
  const auto positions = register_module("position_embedding", std::make_shared<Names>());
  modules_->position_VH = positions->register_parameter("weight", at::zeros({config.max_len, config.hidden}));
  const auto transformer = register_module("transformer", std::make_shared<Names>());
  const auto layers = transformer->register_module("layers", std::make_shared<Names>());
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    modules_->layers.push_back(layers->register_module(std::to_string(i), Layer(config, i)));
  }
  modules_->norm = register_module("norm", LayerNorm(config.hidden, config.norm_eps));
  modules_->dropout = config.dropout;
}

Tensor SasrecImpl::forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context) {
  auto state_TH = x_TH + modules_->position_VH.index_select(0, layout.positions());
  if (is_training()) state_TH = dropout(state_TH, modules_->dropout, dropout_key(context, -1, DropoutSite::kEmbedding), layout);
  for (auto& layer : modules_->layers) state_TH = layer->forward(state_TH, layout, context);
  return modules_->norm->forward(state_TH);
}

void SasrecImpl::init_weights(std::uint64_t seed, const std::string& prefix) {
  constexpr double kStd = 0.02;
  const at::NoGradGuard no_grad;
  const auto zero_bias = [&](const Linear& linear) { linear->bias.zero_(); };
  init_normal_(modules_->position_VH, seed, prefix + "position_embedding.weight", kStd);
  for (std::size_t i = 0; i < modules_->layers.size(); ++i) {
    const auto& layer = modules_->layers[i];
    const auto name = prefix + "transformer.layers." + std::to_string(i) + ".";
    // The reference copies one in_proj to all layers by accident (deep copies of one layer); here each layer draws its own.
    init_xavier_uniform_(layer->self_attn->in_proj_weight, seed, name + "self_attn.in_proj_weight");
    layer->self_attn->in_proj_bias.zero_();
    init_normal_(layer->self_attn->out_proj->weight, seed, name + "self_attn.out_proj.weight", kStd);
    init_normal_(layer->linear1->weight, seed, name + "linear1.weight", kStd);
    init_normal_(layer->linear2->weight, seed, name + "linear2.weight", kStd);
    for (const auto& linear : {layer->self_attn->out_proj, layer->linear1, layer->linear2}) zero_bias(linear);
    for (const auto& norm : {layer->norm1, layer->norm2}) {
      norm->weight.fill_(1);
      norm->bias.zero_();
    }
  }
  modules_->norm->weight.fill_(1);
  modules_->norm->bias.zero_();
}

}  // namespace uqa::models
