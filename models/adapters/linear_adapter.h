// models/adapters/linear_adapter.h - one linear layer on one state of the user: their mean (UQABench's SimplePooler) or their last.
#pragma once

#include <utility>

#include "models/adapters/adapter.h"

namespace uqa::models {

/// "linear": linear on every position, then the mean over the history, computed the other way round, mean then linear, which is the
/// same up to rounding and T times cheaper. "last": linear on the last state. Parameters: `up_proj.{weight,bias}`.
class LinearAdapterImpl : public AdapterImpl {
 public:
  explicit LinearAdapterImpl(const AdapterConfig& config);
  /// As torch.nn.Linear does (uniform +-1/sqrt(in)), from counter-based numbers keyed by name and element.
  void init_weights(std::uint64_t seed) override;
  /// Trains on whitened states: from here on `up_proj` is applied to (mean - center) * whiten, both fixed, taken from `means` [S,
  /// encoder_hidden] (mean states of histories, S >= 2). Weights start as init_weights() does, scaled so that the soft tokens of `means`
  /// have the root mean square `rms`; the bias starts at 0. Encoder states share a large constant part and few dominant directions, so
  /// in their own coordinates the optimizer's steps move all users together. ZCA whitening (Bell and Sejnowski 1997); directions below
  /// 1e-2 of the largest variance are not amplified further. Without spread in `means` this is init_weights().
  void init_whitened(std::uint64_t seed, const Tensor& means_SH, double rms);
  /// `means` [S, encoder_hidden] as up_proj sees them: centred and whitened after init_whitened(), else as they are; float32.
  [[nodiscard]] Tensor inputs_of(const Tensor& means_SH) const;
  /// Starts from `weight` [llm_hidden, encoder_hidden] on inputs_of(means), scaled as in init_whitened(); the bias becomes 0.
  void start_from(const Tensor& weight_LH, const Tensor& means_SH, double rms);
  /// Weight [llm_hidden, encoder_hidden] and bias [llm_hidden] of the same map as one linear layer on plain means.
  [[nodiscard]] std::pair<Tensor, Tensor> folded() const;
  [[nodiscard]] Tensor forward(const Tensor& states_TH, const PackedLayout& layout) override;
  [[nodiscard]] std::map<std::string, Tensor> stored() const override;
  using AdapterImpl::to;
  /// Moves the fixed coordinates, too.
  void to(torch::Device device, bool non_blocking = false) override;

 private:
  torch::nn::Linear up_proj_;
  Tensor center_H_, whiten_HH_;  ///< float32; undefined: plain states
};

}  // namespace uqa::models
