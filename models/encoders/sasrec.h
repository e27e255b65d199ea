// models/encoders/sasrec.h - SASRec as the reference builds it: learned positions, post-norm transformer layers with ReLU, a final
// LayerNorm. Kang and McAuley, arXiv 1808.09781; structure of torch.nn.TransformerEncoder.
#pragma once

#include "models/user_model.h"

namespace uqa::models {

/// Parameters: position_embedding.weight [max_len, H], transformer.layers.<i>.{self_attn.{in_proj_weight, in_proj_bias, out_proj},
/// linear1, linear2, norm1, norm2}, norm.
class SasrecImpl : public EncoderImpl {
 public:
  explicit SasrecImpl(const UserModelConfig& config, const TensorParallel& tp = {});
  [[nodiscard]] Tensor forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context) override;
  void init_weights(std::uint64_t seed, const std::string& prefix) override;
  [[nodiscard]] std::vector<std::vector<Tensor>> layer_parameters() const override;

 private:
  struct Modules;
  std::shared_ptr<Modules> modules_;
};

}  // namespace uqa::models
