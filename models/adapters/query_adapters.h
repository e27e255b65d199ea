// models/adapters/query_adapters.h - adapters whose soft tokens are learned queries that look at every state of the user.
#pragma once

#include <vector>

#include "models/adapters/adapter.h"
#include "models/layers/linear.h"
#include "models/layers/norm.h"

namespace uqa::models {

/// What queries look at: keys (x * gain) Wk^T and values (x * gain + shift) Wv^T + bias of rows x [T, H], which are never made. A score q . (Wk x) is
/// (Wk^T q) . x, and a sum of values is the value of the sum of rows, since the weights add up to 1: so the K queries are multiplied by the matrices, not the T rows
/// (as DeepSeek-V2 absorbs its up-projections, 2024). A bias of the keys would move all scores of a query alike, which changes nothing.
struct ProjectedHistories {
  Tensor x_TH, k_weight_HH, v_weight_HH;
  Tensor v_bias_H = {}, gain_H = {}, shift_H = {};  ///< undefined: none; gain and shift come together
};
/// Attention from K queries of each user to the user's own rows. H is cut into heads.
///   q  [B, K, H] or [1, K, H] (the same for all users) -> [B, K, H]
[[nodiscard]] Tensor attend_histories(const Tensor& q_BKH, const ProjectedHistories& histories, const PackedLayout& layout, std::int64_t num_heads);

/// K learned queries, one attention over the history, one linear layer (the pooling by multi-head attention of the Set Transformer, Lee et
/// al. 2019). Parameters: `queries` [K, H], `k_proj.weight`, `v_proj.weight` [H, H], `up_proj.{weight,bias}`.
class AttentionPoolAdapterImpl : public AdapterImpl {
 public:
  explicit AttentionPoolAdapterImpl(const AdapterConfig& config);
  void init_weights(std::uint64_t seed) override;
  [[nodiscard]] Tensor forward(const Tensor& states_TH, const PackedLayout& layout) override;

 private:
  Tensor queries_KH_;
  Linear k_proj_, v_proj_, up_proj_;
};

/// K learned queries through num_layers layers of self-attention among them, cross-attention to the history, and an MLP with GELU, each
/// behind a LayerNorm with a residual (pre-norm); a last LayerNorm and one linear layer. After the Q-Former of BLIP-2 (Li et al. 2023),
/// without its text branch. Parameters: `queries` [K, H], `layers.<i>.{norm_self,norm_cross,norm_states,norm_mlp}`, `layers.<i>.{self_q,
/// self_k,self_v,self_o,cross_q,cross_k,cross_v,cross_o,fc1,fc2}` (cross_k without a bias), `norm`, `up_proj`.
class QFormerAdapterImpl : public AdapterImpl {
 public:
  explicit QFormerAdapterImpl(const AdapterConfig& config);
  void init_weights(std::uint64_t seed) override;
  [[nodiscard]] Tensor forward(const Tensor& states_TH, const PackedLayout& layout) override;

 private:
  struct Modules;
  Tensor queries_KH_;
  std::shared_ptr<Modules> modules_;
};

}  // namespace uqa::models
