#include "models/encoders/hstu.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "models/init.h"
#include "models/layers/dropout.h"
#include "models/layers/silu_attention.h"
#include "models/parallel/linear.h"
#include "models/parallel/norm.h"
#include "models/recompute.h"

// T packed rows, H width, N heads of this rank, A width of a head's q and k, L width of its u and v, P = 2 N (L + A).

namespace uqa::models {
namespace {

constexpr double kNormEps = 1e-6;
static_assert(kLastTimeBucket + 1 == kHstuTimeBuckets, "parameters are counted with as many time buckets");

/// LayerNorm without weight and bias.
Tensor plain_norm(const Tensor& x_TF) { return at::layer_norm(x_TF, {x_TF.size(1)}, {}, {}, kNormEps); }

/// What all layers' attention shares in one forward pass.
struct Scoring {
  std::vector<double> scales;  ///< one a sequence
  std::shared_ptr<const TimeBuckets> buckets;
};

class RelativeBiasImpl : public torch::nn::Module {
 public:
  explicit RelativeBiasImpl(const UserModelConfig& config)
      : ts_w(register_parameter("_ts_w", at::zeros({kLastTimeBucket + 1}))),
        pos_w(register_parameter("_pos_w", at::zeros({2 * config.max_len - 1}))),
        uses_position_(config.hstu.bias != "none"),
        uses_time_(config.hstu.bias == "position_time") {}

  /// The heads share the weights, and `comm` has the heads.
  [[nodiscard]] AttentionBias of(const Scoring& scoring, const comm::Communicator& comm) const {
    if (uses_time_) {
      const auto shared = copy_all_to({pos_w, ts_w}, comm);
      return {.position_w = shared[0], .time_w = shared[1], .buckets = scoring.buckets};
    }
    AttentionBias bias;
    if (uses_position_) bias.position_w = copy_to(pos_w, comm);
    return bias;
  }

  Tensor ts_w, pos_w;

 private:
  bool uses_position_, uses_time_;
};
TORCH_MODULE(RelativeBias);

class LayerImpl : public SlicedModule {
 public:
  LayerImpl(const UserModelConfig& config, std::int64_t index, const TensorParallel& tp)
      : heads_(cut(config.num_heads, tp, "model.num_heads")),
        linear_dim_(config.hstu_linear_dim()),
        attention_dim_(config.hstu_attention_dim()),
        index_(index),
        dropout_(config.dropout),
        comm_(tp.comm) {
    const auto values = config.num_heads * linear_dim_, keys = config.num_heads * attention_dim_;
    const auto my_values = widened(heads_, linear_dim_), my_keys = widened(heads_, attention_dim_);
    std::vector<Stretch> columns;
    const auto add = [&](std::int64_t before, const SliceRange& mine) {
      columns.push_back({.range = {.begin = before + mine.begin, .length = mine.length}, .sharers = {}});
    };
    add(0, my_values);
    add(values, my_values);
    add(2 * values, my_keys);
    add(2 * values + keys, my_keys);
    uvqk = add_sliced("_uvqk", {config.hidden, 2 * (values + keys)}, 1, columns, tp);
    o = register_module("_o", RowParallelLinear(values, config.hidden, Bias::kYes, my_values, tp));
    rel_attn_bias = register_module("_rel_attn_bias", RelativeBias(config));
  }

  [[nodiscard]] Tensor forward(const Tensor& x_TH, const PackedLayout& layout, const Scoring& scoring, const DropoutContext& context) {
    const auto num_rows = x_TH.size(0), num_heads = heads_.length, value_width = num_heads * linear_dim_, key_width = num_heads * attention_dim_;
    auto projected_TP = at::mm(copy_to(plain_norm(x_TH), comm_), uvqk.local());
    if (projected_TP.scalar_type() == at::kBFloat16) projected_TP = projected_TP.to(at::kFloat);  // attention takes no bfloat16
    const auto parts = at::silu(projected_TP).split_with_sizes({value_width, value_width, key_width, key_width}, 1);
    const auto v_TNL = parts[1].view({num_rows, num_heads, linear_dim_});
    const auto q_TNA = parts[2].view({num_rows, num_heads, attention_dim_}), k_TNA = parts[3].view({num_rows, num_heads, attention_dim_});
    const auto attended_TNL = silu_attention(q_TNA, k_TNA, v_TNL, layout, scoring.scales, rel_attn_bias->of(scoring, comm_));
    auto gated_TF = parts[0] * parallel_layer_norm(attended_TNL.flatten(1), kNormEps, comm_);
    if (is_training()) gated_TF = dropout(gated_TF, dropout_, dropout_key(context, index_, DropoutSite::kAttentionOutput), layout, heads_.begin * linear_dim_);
    return x_TH + o->forward(gated_TF);
  }

  SlicedParameter uvqk;
  RowParallelLinear o{nullptr};
  RelativeBias rel_attn_bias{nullptr};

 private:
  SliceRange heads_;  ///< of this rank
  std::int64_t linear_dim_, attention_dim_;
  std::int64_t index_;
  double dropout_;
  comm::Communicator comm_;
};
TORCH_MODULE(Layer);

/// Only there to give parameters the reference's names.
struct Names : torch::nn::Module {};

}  // namespace

struct HstuImpl::Modules {
  std::vector<Layer> layers;
  std::int64_t max_len = 0;
  bool divides_by_max_len = false;
  bool uses_time = false;
};

HstuImpl::HstuImpl(const UserModelConfig& config, const TensorParallel& tp) : modules_(std::make_shared<Modules>()) {
  const auto hstu = register_module("_hstu", std::make_shared<Names>());
  const auto layers = hstu->register_module("_attention_layers", std::make_shared<Names>());
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    modules_->layers.push_back(layers->register_module(std::to_string(i), Layer(config, i, tp)));
  }
  modules_->max_len = config.max_len;
  modules_->divides_by_max_len = config.hstu.norm == "max_len";
  modules_->uses_time = config.hstu.bias == "position_time";
}

Tensor HstuImpl::forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context) {
  Scoring scoring;
  for (std::size_t b = 0; b + 1 < layout.cu_seqlens.size(); ++b) {
    const auto length = layout.cu_seqlens[b + 1] - layout.cu_seqlens[b];
    scoring.scales.push_back(1 / static_cast<double>(modules_->divides_by_max_len ? modules_->max_len : std::max<std::int64_t>(length, 1)));
  }
  if (modules_->uses_time) {
    UQA_CHECK(!layout.timestamps.empty() || layout.num_rows() == 0, ErrorCode::kConfig,
              "model.hstu.bias = position_time, but the interactions have no timestamps; import them, or set model.hstu.bias to position or none");
    UQA_CHECK(static_cast<std::int64_t>(layout.timestamps.size()) == layout.num_rows(), ErrorCode::kData,
              "batch of {} interactions has {} timestamps, one each is required; check the data", layout.num_rows(), layout.timestamps.size());
    scoring.buckets = time_buckets(layout);
  }
  auto state_TH = x_TH;
  const auto shared = std::make_shared<const PackedLayout>(layout);  // a recomputed layer outlives the caller's
  for (std::size_t i = 0; i < modules_->layers.size(); ++i) {
    auto& layer = modules_->layers[i];
    const auto run = [layer, shared, scoring, context](const Tensor& x) mutable { return layer->forward(x, *shared, scoring, context); };
    state_TH = watched(i, [&] { return run_layer(run, state_TH, *layer); });
  }
  return state_TH;
}

std::vector<std::vector<Tensor>> HstuImpl::layer_parameters() const { return parameters_of_each(modules_->layers); }

void HstuImpl::init_weights(std::uint64_t seed, const std::string& prefix) {
  constexpr double kStd = 0.02;
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < modules_->layers.size(); ++i) {
    const auto& layer = modules_->layers[i];
    const auto name = prefix + "_hstu._attention_layers." + std::to_string(i) + ".";
    layer->uvqk.init([&](const Tensor& full) { init_normal_(full, seed, name + "_uvqk", kStd); });
    layer->o->weight.init([&](const Tensor& full) { init_xavier_uniform_(full, seed, name + "_o.weight"); });
    init_uniform_(layer->o->bias, seed, name + "_o.bias", 1 / std::sqrt(static_cast<double>(layer->o->weight.full_shape()[1])));
    init_normal_(layer->rel_attn_bias->ts_w, seed, name + "_rel_attn_bias._ts_w", kStd);
    init_normal_(layer->rel_attn_bias->pos_w, seed, name + "_rel_attn_bias._pos_w", kStd);
  }
}

}  // namespace uqa::models
