// models/encoders/hstu.h - HSTU as UQABench builds it: one SiLU projection to u, v, q and k, attention with SiLU weights, a gate u; no FFN, no
// final norm. Zhai et al., arXiv 2402.17152.
#pragma once

#include "models/user_model.h"

namespace uqa::models {

/// Parameters, all below _hstu._attention_layers.<i>: _uvqk [H, 2 N (linear_dim + attention_dim)], _o.{weight, bias},
/// _rel_attn_bias.{_ts_w [129], _pos_w [2 max_len - 1]}. The bias' weights exist in any case, as in the reference's checkpoints; those that
/// config.hstu.bias leaves out get no gradient. attention_dropout and norm_eps are not used: the reference drops no attention weights, and its
/// LayerNorms, which have no parameters, take 1e-6.
class HstuImpl : public EncoderImpl {
 public:
  explicit HstuImpl(const UserModelConfig& config, const TensorParallel& tp = {});
  /// With the bias "position_time", row t also depends on the timestamp of the row that follows it (models/layers/silu_attention.h).
  /// Error(kConfig) if the batch then has no timestamps, Error(kData) if it has not one a row.
  [[nodiscard]] Tensor forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context) override;
  void init_weights(std::uint64_t seed, const std::string& prefix) override;
  [[nodiscard]] std::vector<std::vector<Tensor>> layer_parameters() const override;

 private:
  struct Modules;
  std::shared_ptr<Modules> modules_;
};

}  // namespace uqa::models
