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
#include "models/parallel/layout.h"
#include "models/parallel/sliced.h"

namespace uqa::models::llm {

/// One projection: rows [begin, begin + size) of this rank's fused output.
struct Projection {
  std::string name;          ///< "self_attn.q_proj"
  std::int64_t size = 0;     ///< output features of this rank
  std::int64_t full_size = 0, first = 0;  ///< they are [first, first + size) of so many
  comm::Communicator sharers;    ///< ranks that hold the same features (key/value heads); a group of one: none
  std::int64_t begin = 0;
  std::int64_t lora_begin = -1;  ///< its rank's first LoRA column; -1: no LoRA
  Tensor weight_NK;          ///< trainable only: float32 master
  Tensor a_RK, b_NR;         ///< LoRA: float32 masters [rank, K], [size, rank]
};
/// Output features `rows` of `full_size`.
[[nodiscard]] Projection projection(std::string name, const SliceRange& rows, std::int64_t full_size, comm::Communicator sharers = {});

/// How a linear layer is split over a tensor-parallel group.
enum class LinearSplit {
  kColumns,  ///< each rank has some output features of the whole input, which is the result of copy_to()
  kRows,     ///< each rank has some input features; the outputs are summed by the caller (reduce_from)
};

struct LinearSettings {
  at::ScalarType dtype = at::kFloat;  ///< compute type
  bool trainable = false;             ///< float32 masters that require gradients instead of one frozen weight
  LoraOptions lora;
  TensorParallel tp;
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
  /// `columns`: the input features of this rank, of `full_in`.
  FusedLinear(std::vector<Projection> projections, const SliceRange& columns, std::int64_t full_in, LinearSplit split, const LinearSettings& settings);

  /// x [T, K + R] with the last R columns free to be written, or [T, K] (then copied once where R > 0) -> [T, N].
  [[nodiscard]] Tensor operator()(const Tensor& x_TL);
  /// Sets A from (seed, "lora.<layer>.<target>.A", element of the whole A), uniform in +-1/sqrt(whole K), and B to zero.
  void init_lora(std::uint64_t seed, std::int64_t layer);
  /// Moves what is frozen; parameters are the module's that registered them.
  void to(at::Device device, bool non_blocking);
  /// Copies this rank's part of one projection's whole weight in, of any floating type.
  void set_weight(const std::string& projection, const Tensor& weight_NK);
  /// This rank's part of the weight of one projection, LoRA merged in: float32 [size, K], new storage.
  [[nodiscard]] Tensor merged_weight(const Projection& projection) const;

  /// What this rank's parts of a projection's weight, A and B are of the whole.
  [[nodiscard]] ParameterLayout weight_layout(const Projection& projection) const;
  [[nodiscard]] ParameterLayout a_layout(const Projection& projection) const;
  [[nodiscard]] ParameterLayout b_layout(const Projection& projection) const;

  [[nodiscard]] std::int64_t lora_columns() const { return lora_columns_; }
  [[nodiscard]] std::int64_t in_features() const { return in_features_; }
  [[nodiscard]] const std::vector<Projection>& projections() const { return projections_; }

 private:
  /// The projections' own tensors as this rank computes with them: gradients of shared ones are summed over the sharers.
  [[nodiscard]] std::vector<Tensor> shared_ones(Tensor Projection::*member) const;
  [[nodiscard]] ParameterLayout rows_layout(const Projection& projection, std::int64_t width) const;

  std::vector<Projection> projections_;
  std::int64_t in_features_ = 0, first_in_ = 0, full_in_ = 0;
  LinearSplit split_ = LinearSplit::kColumns;
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
