// models/cost.h - how many parameters a user encoder has and how many floating-point operations it takes, by closed formulas.
//
//   const double step_flops = 3 * forward_flops(config, num_interactions, mean_length, num_labels).total();
#pragma once

#include <cstdint>

#include "models/user_model.h"

namespace uqa::models {

/// Parameters by group; the item table counts once (it is tied to the output head).
struct ParameterCounts {
  std::int64_t tables = 0;       ///< embedding tables
  std::int64_t projections = 0;  ///< proj1 and proj2 with biases
  std::int64_t backbone = 0;     ///< the encoder, learned positions and norms included
  [[nodiscard]] std::int64_t total() const { return tables + projections + backbone; }
};
[[nodiscard]] ParameterCounts count_parameters(const UserModelConfig& config);
/// Of each layer of the backbone, first to last.
[[nodiscard]] std::vector<std::int64_t> count_layer_parameters(const UserModelConfig& config);
/// Linear + mean-pool adapter.
[[nodiscard]] std::int64_t count_adapter_parameters(std::int64_t encoder_hidden, std::int64_t llm_hidden);

/// Stored beside every FLOP figure.
inline constexpr const char* kFlopsConvention =
    "2 per multiply-add of matrix products only; causal attention counts visible keys, (length + 1) / 2 on average; a state-space scan counts the keys of its chunk and its states; item softmax at labelled "
    "positions; training = 3 x forward, recomputation not counted";

/// Forward operations by module.
struct FlopCounts {
  double projections = 0;   ///< proj1, proj2
  double backbone = 0;      ///< linear layers of the encoder
  double attention = 0;     ///< what mixes positions: q k^T and p v, or the chunks and states of a scan (a GRU: 0, its recurrence is among its matrices)
  double item_softmax = 0;  ///< hiddens x item table
  [[nodiscard]] double without_softmax() const { return projections + backbone + attention; }
  [[nodiscard]] double total() const { return without_softmax() + item_softmax; }
};
/// Forward pass over `num_interactions` packed rows of sequences of `mean_length`, scoring `num_labels` of them.
[[nodiscard]] FlopCounts forward_flops(const UserModelConfig& config, double num_interactions, double mean_length, double num_labels);
/// The same with a label at every interaction.
[[nodiscard]] FlopCounts forward_flops(const UserModelConfig& config, double num_interactions, double mean_length);

/// One training step as the network sees it. Lengths and ids are those of a mean rank.
struct WireShape {
  int ranks = 1;
  int tp = 1;                            ///< divides ranks and table_group
  int table_group = 1;                   ///< ranks that hold the cut tables once; divides ranks
  bool sharded = true;                   ///< tables cut by rows (those of at least table_min_rows rows)
  std::int64_t table_min_rows = 4096;
  Shard shard = Shard::kNone;            ///< of what is not in cut tables
  int micro_steps = 1;                   ///< passes of a step: with Shard::kFull each gathers the layers
  bool bf16 = false;                     ///< of the item softmax: hiddens travel in two bytes
  double num_labels = 0;                 ///< labelled rows of one batch
  std::vector<double> distinct_ids = {}; ///< of one batch in each table (config.tables order)
};
/// Bytes that a mean rank sends in one step (forward and backward), as Communicator::bytes_sent counts them: the best known algorithm of each
/// collective. Headers of collectives and the few numbers that steps agree on are left out.
struct WireBytes {
  double tables = 0;   ///< ids, rows and their gradients; sums over table groups
  double softmax = 0;  ///< hiddens, targets, sums and gradients of hiddens
  double dense = 0;    ///< gradients summed over dp and parameters sent: all but cut tables (counted as if tp cut nothing)
  [[nodiscard]] double total() const { return tables + softmax + dense; }
};
[[nodiscard]] WireBytes wire_bytes(const UserModelConfig& config, const WireShape& shape);

}  // namespace uqa::models
