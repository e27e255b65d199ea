// models/encoders/gru4rec.h - GRU4Rec as the reference builds it: gated recurrent units without biases, a linear layer back to the encoder's width
// and a LayerNorm. Hidasi et al., arXiv 1511.06939; the recurrence is torch.nn.GRU's.
#pragma once

#include "models/user_model.h"

namespace uqa::models {

/// Parameters: gru_layers.{weight_ih_l<i> [3F, H or F], weight_hh_l<i> [3F, F]}, dense, norm, with F = config.resolved_inner().
class Gru4RecImpl : public EncoderImpl {
 public:
  explicit Gru4RecImpl(const UserModelConfig& config);
  [[nodiscard]] Tensor forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context) override;
  void init_weights(std::uint64_t seed, const std::string& prefix) override;
  [[nodiscard]] std::vector<std::vector<Tensor>> layer_parameters() const override;

 private:
  struct Modules;
  std::shared_ptr<Modules> modules_;
};

}  // namespace uqa::models
