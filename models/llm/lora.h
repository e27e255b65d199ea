// models/llm/lora.h - a linear layer of one or several projections of the same input, run as one GEMM, frozen (with or without
// low-rank updates) or fully trainable.
//
//   FusedLinear qkv({{"self_attn.q_proj", 576}, {"self_attn.k_proj", 192}, {"self_attn.v_proj", 192}}, 576, settings);
//   auto y_TN = qkv(x_TL);        // x from add_norm(..., /*spare=*/qkv.lora_columns())
//
// T rows, K input width, N output width, R LoRA columns (rank times the number of projections that have LoRA), L = K + R.
#pragma once

#include <string>
#include <vector>

#include "models/llm/decoder.h"

namespace uqa::models::llm {

/// One projection: rows [begin, begin + size) of the fused output.
struct Projection {
  std::string name;          ///< "self_attn.q_proj"
  std::int64_t size = 0;     ///< output features
  std::int64_t begin = 0;
  std::int64_t lora_begin = -1;  ///< its rank's first LoRA column; -1: no LoRA
  Tensor weight_NK;          ///< trainable only: float32 master
  Tensor a_RK, b_NR;         ///< LoRA: float32 masters [rank, K], [size, rank]
};

struct LinearSettings {
  at::ScalarType dtype = at::kFloat;  ///< compute type
  bool trainable = false;             ///< float32 masters that require gradients instead of one frozen weight
  LoraOptions lora;
};

/// y = x W^T + scale (x A^T) B^T without a bias.
///
/// Frozen: W lies in one [N, K + R] buffer of the compute type whose last R columns hold scale * B (block-diagonal over the
/// projections), and each input row carries x A^T behind x. So LoRA costs one thin GEMM, no second pass over y, and backward gets the
/// input's and the LoRA columns' gradients out of one GEMM. No gradient of W is computed. Backward uses the B of the latest forward:
/// parameters must not change between a forward and its backward.
class FusedLinear {
 public:
  FusedLinear() = default;
  FusedLinear(std::vector<Projection> projections, std::int64_t in_features, const LinearSettings& settings);

  /// x [T, K + R] with the last R columns free to be written, or [T, K] (then copied once where R > 0) -> [T, N].
  [[nodiscard]] Tensor operator()(const Tensor& x_TL);
  /// Sets A from (seed, "lora.<layer>.<target>.A", element), uniform in +-1/sqrt(K), and B to zero.
  void init_lora(std::uint64_t seed, std::int64_t layer);
  /// Copies one projection's weight [size, K] in, of any floating type.
  void set_weight(const std::string& projection, const Tensor& weight_NK);
  /// Weight of one projection, LoRA merged in: float32 [size, K], new storage.
  [[nodiscard]] Tensor merged_weight(const Projection& projection) const;

  [[nodiscard]] std::int64_t lora_columns() const { return lora_columns_; }
  [[nodiscard]] std::int64_t in_features() const { return in_features_; }
  [[nodiscard]] const std::vector<Projection>& projections() const { return projections_; }

 private:
  std::vector<Projection> projections_;
  std::int64_t in_features_ = 0;
  std::int64_t lora_columns_ = 0;
  double scale_ = 0;
  LinearSettings settings_;
  Tensor weight_NL_;  ///< frozen: [W | scale B]
};

/// "q_proj" of "self_attn.q_proj": the name that LoraOptions::targets uses.
[[nodiscard]] std::string target_of(const std::string& projection);
/// Throws Error(kConfig): negative rank, unknown or repeated target, no target.
void validate(const LoraOptions& options);

}  // namespace uqa::models::llm
