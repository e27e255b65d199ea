#include "models/adapters/query_adapters.h"

#include <cmath>

#include "models/init.h"

// T packed rows of B users, K queries, H width, N heads.

namespace uqa::models {
namespace {

constexpr double kStd = 0.02;
constexpr double kNormEps = 1e-5;

/// [R, H] -> [1, N, R, H / N].
Tensor heads_of(const Tensor& x_RH, std::int64_t num_heads) { return x_RH.view({1, x_RH.size(0), num_heads, -1}).transpose(1, 2); }

void init_(const Linear& linear, std::uint64_t seed, const std::string& name) {
  init_normal_(linear->weight, seed, name + ".weight", kStd);
  if (linear->bias.defined()) linear->bias.zero_();
}

}  // namespace

Tensor attend_histories(const Tensor& q_BKH, const Tensor& keys_TH, const Tensor& values_TH, const PackedLayout& layout, std::int64_t num_heads) {
  const std::int64_t num_queries = q_BKH.size(1), width = q_BKH.size(2);
  std::vector<Tensor> out;
  for (std::int64_t b = 0; b < layout.num_sequences(); ++b) {
    const auto begin = layout.cu_seqlens[static_cast<std::size_t>(b)], length = layout.cu_seqlens[static_cast<std::size_t>(b) + 1] - begin;
    const auto q_KH = q_BKH.select(0, q_BKH.size(0) == 1 ? 0 : b);
    const auto attended = at::scaled_dot_product_attention(heads_of(q_KH, num_heads), heads_of(keys_TH.narrow(0, begin, length), num_heads),
                                                           heads_of(values_TH.narrow(0, begin, length), num_heads));
    out.push_back(attended.transpose(1, 2).reshape({num_queries, width}));
  }
  return out.empty() ? at::zeros({0, num_queries, width}, keys_TH.options()) : at::stack(out);
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
  const auto pooled_BKH = attend_histories(queries_KH_.unsqueeze(0), k_proj_->forward(x_TH), v_proj_->forward(x_TH), layout, config().num_heads);
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
      linears.emplace(name, register_module(name, Linear(h, h, Bias::kYes)));
    }
    linears.emplace("fc1", register_module("fc1", Linear(h, config.resolved_inner(), Bias::kYes)));
    linears.emplace("fc2", register_module("fc2", Linear(config.resolved_inner(), h, Bias::kYes)));
    num_heads = config.num_heads;
  }

  /// Queries of all users [B, K, H] -> [B, K, H].
  [[nodiscard]] Tensor forward(const Tensor& q_BKH, const Tensor& states_TH, const PackedLayout& layout) const {
    const auto apply = [&](const char* name, const Tensor& x) { return linears.at(name)->forward(x); };
    const auto heads = [&](const Tensor& x_BKH) { return x_BKH.view({x_BKH.size(0), x_BKH.size(1), num_heads, -1}).transpose(1, 2); };
    const auto own_BKH = norm_self->forward(q_BKH);
    const auto among_BKH = at::scaled_dot_product_attention(heads(apply("self_q", own_BKH)), heads(apply("self_k", own_BKH)), heads(apply("self_v", own_BKH)))
                               .transpose(1, 2).reshape(q_BKH.sizes());
    auto x_BKH = q_BKH + apply("self_o", among_BKH);
    const auto seen_TH = norm_states->forward(states_TH);
    const auto crossed_BKH = attend_histories(apply("cross_q", norm_cross->forward(x_BKH)), apply("cross_k", seen_TH), apply("cross_v", seen_TH), layout, num_heads);
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
  const auto x_TH = states_TH.to(at::kFloat);
  auto q_BKH = queries_KH_.unsqueeze(0).expand({layout.num_sequences(), -1, -1});
  for (const auto& layer : modules_->layers) q_BKH = layer->forward(q_BKH, x_TH, layout);
  return modules_->up_proj->forward(modules_->norm->forward(q_BKH)).to(at::kFloat);
}

}  // namespace uqa::models
