#include "models/adapters/query_adapters.h"

#include <cmath>

#include "models/init.h"

// T packed rows of B users, K queries, H width, N heads.

namespace uqa::models {
namespace {

constexpr double kStd = 0.02;
constexpr double kNormEps = 1e-5;

void init_(const Linear& linear, std::uint64_t seed, const std::string& name) {
  init_normal_(linear->weight, seed, name + ".weight", kStd);
  if (linear->bias.defined()) linear->bias.zero_();
}

}  // namespace

Tensor attend_histories(const Tensor& q_BKH, const ProjectedHistories& histories, const PackedLayout& layout, std::int64_t num_heads) {
  const auto& [x_TH, k_weight_HH, v_weight_HH, v_bias_H, gain_H, shift_H] = histories;
  const std::int64_t num_queries = q_BKH.size(1), width = q_BKH.size(2), head_dim = width / num_heads;
  // N heads of D features
  auto k_weight_NDH = k_weight_HH.view({num_heads, head_dim, width});
  if (gain_H.defined()) k_weight_NDH = k_weight_NDH * gain_H;
  const auto q_BNKH = at::matmul(q_BKH.reshape({-1, num_queries, num_heads, head_dim}).transpose(1, 2), k_weight_NDH) / std::sqrt(static_cast<double>(head_dim));
  std::vector<Tensor> seen;
  for (std::int64_t b = 0; b < layout.num_sequences(); ++b) {
    const auto begin = layout.cu_seqlens[static_cast<std::size_t>(b)], length = layout.cu_seqlens[static_cast<std::size_t>(b) + 1] - begin;
    const auto rows_TH = x_TH.narrow(0, begin, length);
    const auto q_RH = q_BNKH.select(0, q_BNKH.size(0) == 1 ? 0 : b).reshape({-1, width});  // R = N K
    seen.push_back(at::mm(at::mm(q_RH, rows_TH.t()).softmax(1), rows_TH));
  }
  if (seen.empty()) return at::zeros({0, num_queries, width}, x_TH.options());
  auto x_BNKH = at::stack(seen).view({-1, num_heads, num_queries, width});
  if (gain_H.defined()) x_BNKH = x_BNKH * gain_H + shift_H;
  const auto out_BKH = at::matmul(x_BNKH, v_weight_HH.view({num_heads, head_dim, width}).transpose(1, 2)).transpose(1, 2).reshape({-1, num_queries, width});
  return v_bias_H.defined() ? out_BKH + v_bias_H : out_BKH;
}

AttentionPoolAdapterImpl::AttentionPoolAdapterImpl(const AdapterConfig& config)
    : AdapterImpl(config, StateView::kAll),
      queries_KH_(register_parameter("queries", at::zeros({config.num_tokens, config.encoder_hidden}))),
      k_proj_(register_module("k_proj", Linear(config.encoder_hidden, config.encoder_hidden, Bias::kNo))),
      v_proj_(register_module("v_proj", Linear(config.encoder_hidden, config.encoder_hidden, Bias::kNo))),
      up_proj_(register_module("up_proj", Linear(config.encoder_hidden, config.llm_hidden, Bias::kYes))) {}

void AttentionPoolAdapterImpl::init_weights(std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  // Unit-size queries and identity projections: a soft average of the states from the first step on, and K different ones.
  init_normal_(queries_KH_, seed, "adapter.queries", 1);
  const auto identity_HH = at::eye(config().encoder_hidden);
  k_proj_->weight.copy_(identity_HH);
  v_proj_->weight.copy_(identity_HH);
  init_linear_default_(up_proj_->weight, up_proj_->bias, seed, "adapter.up_proj");
}

Tensor AttentionPoolAdapterImpl::forward(const Tensor& states_TH, const PackedLayout& layout) {
  require_histories(states_TH, layout);
  const auto x_TH = states_TH.to(at::kFloat);
  const auto pooled_BKH = attend_histories(queries_KH_.unsqueeze(0), {.x_TH = x_TH, .k_weight_HH = k_proj_->weight, .v_weight_HH = v_proj_->weight}, layout, config().num_heads);
  return up_proj_->forward(pooled_BKH).to(at::kFloat);
}

namespace {

struct QFormerLayerImpl : torch::nn::Module {
  explicit QFormerLayerImpl(const AdapterConfig& config)
      : norm_self(register_module("norm_self", LayerNorm(config.encoder_hidden, kNormEps))),
        norm_cross(register_module("norm_cross", LayerNorm(config.encoder_hidden, kNormEps))),
        norm_states(register_module("norm_states", LayerNorm(config.encoder_hidden, kNormEps))),
        norm_mlp(register_module("norm_mlp", LayerNorm(config.encoder_hidden, kNormEps))) {
    const auto h = config.encoder_hidden;
    for (const char* name : {"self_q", "self_k", "self_v", "self_o", "cross_q", "cross_k", "cross_v", "cross_o"}) {
      linears.emplace(name, register_module(name, Linear(h, h, std::string_view(name) == "cross_k" ? Bias::kNo : Bias::kYes)));
    }
    linears.emplace("fc1", register_module("fc1", Linear(h, config.resolved_inner(), Bias::kYes)));
    linears.emplace("fc2", register_module("fc2", Linear(config.resolved_inner(), h, Bias::kYes)));
    num_heads = config.num_heads;
  }

  /// Queries of all users [B, K, H] -> [B, K, H]. `states` are normalised, without norm_states' weight and bias.
  [[nodiscard]] Tensor forward(const Tensor& q_BKH, const Tensor& states_TH, const PackedLayout& layout) const {
    const auto apply = [&](const char* name, const Tensor& x) { return linears.at(name)->forward(x); };
    const auto heads = [&](const Tensor& x_BKH) { return x_BKH.view({x_BKH.size(0), x_BKH.size(1), num_heads, -1}).transpose(1, 2); };
    const auto own_BKH = norm_self->forward(q_BKH);
    const auto among_BKH = at::scaled_dot_product_attention(heads(apply("self_q", own_BKH)), heads(apply("self_k", own_BKH)), heads(apply("self_v", own_BKH)))
                               .transpose(1, 2).reshape(q_BKH.sizes());
    auto x_BKH = q_BKH + apply("self_o", among_BKH);
    const auto& value = linears.at("cross_v");
    const auto crossed_BKH = attend_histories(apply("cross_q", norm_cross->forward(x_BKH)),
                                              {.x_TH = states_TH, .k_weight_HH = linears.at("cross_k")->weight, .v_weight_HH = value->weight, .v_bias_H = value->bias,
                                               .gain_H = norm_states->weight, .shift_H = norm_states->bias},
                                              layout, num_heads);
    x_BKH = x_BKH + apply("cross_o", crossed_BKH);
    return x_BKH + apply("fc2", at::gelu(apply("fc1", norm_mlp->forward(x_BKH))));
  }

  LayerNorm norm_self, norm_cross, norm_states, norm_mlp;
  std::map<std::string, Linear> linears;
  std::int64_t num_heads = 1;
};
TORCH_MODULE(QFormerLayer);

/// Only there to give parameters their names.
struct Names : torch::nn::Module {};

}  // namespace

struct QFormerAdapterImpl::Modules {
  std::vector<QFormerLayer> layers;
  LayerNorm norm{nullptr};
  Linear up_proj{nullptr};
};

QFormerAdapterImpl::QFormerAdapterImpl(const AdapterConfig& config)
    : AdapterImpl(config, StateView::kAll),
      queries_KH_(register_parameter("queries", at::zeros({config.num_tokens, config.encoder_hidden}))),
      modules_(std::make_shared<Modules>()) {
  const auto layers = register_module("layers", std::make_shared<Names>());
  for (std::int64_t i = 0; i < config.num_layers; ++i) modules_->layers.push_back(layers->register_module(std::to_string(i), QFormerLayer(config)));
  modules_->norm = register_module("norm", LayerNorm(config.encoder_hidden, kNormEps));
  modules_->up_proj = register_module("up_proj", Linear(config.encoder_hidden, config.llm_hidden, Bias::kYes));
}

void QFormerAdapterImpl::init_weights(std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  init_normal_(queries_KH_, seed, "adapter.queries", 1);
  for (std::size_t i = 0; i < modules_->layers.size(); ++i) {
    const auto& layer = modules_->layers[i];
    for (const auto& [name, linear] : layer->linears) init_(linear, seed, "adapter.layers." + std::to_string(i) + "." + name);
    for (const auto* norm : {&layer->norm_self, &layer->norm_cross, &layer->norm_states, &layer->norm_mlp}) {
      (*norm)->weight.fill_(1);
      (*norm)->bias.zero_();
    }
  }
  modules_->norm->weight.fill_(1);
  modules_->norm->bias.zero_();
  init_linear_default_(modules_->up_proj->weight, modules_->up_proj->bias, seed, "adapter.up_proj");
}

Tensor QFormerAdapterImpl::forward(const Tensor& states_TH, const PackedLayout& layout) {
  require_histories(states_TH, layout);
  const auto x_TH = at::layer_norm(states_TH.to(at::kFloat), {states_TH.size(1)}, {}, {}, kNormEps);  // the same for all layers
  auto q_BKH = queries_KH_.unsqueeze(0).expand({layout.num_sequences(), -1, -1});
  for (const auto& layer : modules_->layers) q_BKH = layer->forward(q_BKH, x_TH, layout);
  return modules_->up_proj->forward(modules_->norm->forward(q_BKH)).to(at::kFloat);
}

}  // namespace uqa::models
