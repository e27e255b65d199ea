#include "models/cost.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace uqa::models {
namespace {

/// One layer of a backbone, or the part outside all layers.
struct Part {
  std::int64_t matrices = 0;  ///< weights of matrices: one multiply-add a row each
  std::int64_t others = 0;    ///< biases, norms, convolution taps, and what stands for positions
};

Part layer_of(const UserModelConfig& config, std::int64_t index) {
  const auto h = config.hidden, inner = config.resolved_inner();
  if (config.encoder == "sasrec") return {.matrices = 4 * h * h + 2 * h * inner, .others = 3 * h + h + inner + h + 4 * h};
  if (config.encoder == "trm_plus") return {.matrices = 4 * h * h + 3 * h * inner, .others = 2 * h};
  if (config.encoder == "hstu") {
    const auto v = config.num_heads * config.hstu_linear_dim(), q = config.num_heads * config.hstu_attention_dim();
    return {.matrices = h * 2 * (v + q) + v * h, .others = h + (2 * config.max_len - 1) + kHstuTimeBuckets};
  }
  if (config.encoder == "gru4rec") return {.matrices = 3 * inner * ((index == 0 ? h : inner) + inner), .others = 0};
  if (config.encoder == "mamba2") {
    const auto& m = config.mamba2;
    const auto width = m.expand * h, heads = width / m.head_dim, mixed = width + 2 * m.num_groups * m.state_size;
    return {.matrices = h * (width + mixed + heads) + width * h, .others = mixed * (m.conv_kernel + 1) + 3 * heads + width + h};
  }
  UQA_FAIL(ErrorCode::kConfig, "encoder = {}, its parameters are not known; must be {}", config.encoder, kKnownEncoders);
}

Part outside_layers(const UserModelConfig& config) {
  const auto h = config.hidden;
  if (config.encoder == "sasrec") return {.matrices = 0, .others = config.max_len * h + 2 * h};
  if (config.encoder == "gru4rec") return {.matrices = config.resolved_inner() * h, .others = h + 2 * h};
  return {};
}

Part whole_backbone(const UserModelConfig& config) {
  Part sum = outside_layers(config);
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    const Part layer = layer_of(config, i);
    sum.matrices += layer.matrices;
    sum.others += layer.others;
  }
  return sum;
}

/// Multiply-adds of one layer and row that mix positions, in a history of mean length `length`.
double mixing(const UserModelConfig& config, double length) {
  const double visible = (length + 1) / 2;
  if (config.encoder == "gru4rec") return 0;  // its recurrence is among the matrices
  if (config.encoder == "hstu") return static_cast<double>(config.num_heads * (config.hstu_linear_dim() + config.hstu_attention_dim())) * visible;
  if (config.encoder == "mamba2") {
    const auto& m = config.mamba2;
    const auto width = static_cast<double>(m.expand * config.hidden), state = static_cast<double>(m.state_size);
    const double in_chunk = (std::min(length, static_cast<double>(m.chunk)) + 1) / 2;
    return (static_cast<double>(m.num_groups) * state + width) * in_chunk + 2 * state * width;
  }
  return 2 * static_cast<double>(config.hidden) * visible;
}

}  // namespace

ParameterCounts count_parameters(const UserModelConfig& config) {
  ParameterCounts counts;
  for (const auto& table : config.tables) counts.tables += table.rows * table.dim;
  counts.projections = (config.feature_width() + 1) * config.hidden + (config.hidden + 1) * config.item_dim();
  const Part backbone = whole_backbone(config);
  counts.backbone = backbone.matrices + backbone.others;
  return counts;
}

std::vector<std::int64_t> count_layer_parameters(const UserModelConfig& config) {
  std::vector<std::int64_t> counts;
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    const Part layer = layer_of(config, i);
    counts.push_back(layer.matrices + layer.others);
  }
  return counts;
}

std::int64_t count_adapter_parameters(std::int64_t encoder_hidden, std::int64_t llm_hidden) { return (encoder_hidden + 1) * llm_hidden; }

FlopCounts forward_flops(const UserModelConfig& config, double num_interactions, double mean_length, double num_labels) {
  const auto hidden = static_cast<double>(config.hidden), layers = static_cast<double>(config.num_layers);
  const auto item_dim = static_cast<double>(config.item_dim());
  const auto num_items = static_cast<double>(config.table(config.features.front().table).rows);
  FlopCounts flops;
  flops.projections = 2 * hidden * (static_cast<double>(config.feature_width()) * num_interactions + item_dim * num_labels);
  flops.backbone = 2 * static_cast<double>(whole_backbone(config).matrices) * num_interactions;
  flops.attention = 2 * layers * mixing(config, mean_length) * num_interactions;
  flops.item_softmax = 2 * item_dim * num_items * num_labels;
  return flops;
}

WireBytes wire_bytes(const UserModelConfig& config, const WireShape& shape) {
  constexpr double kFloat = 4, kId = 8;
  const double n = shape.sharded ? shape.table_group : 1, tp = shape.tp, dp = shape.ranks / tp, groups = shape.ranks / n;
  const auto ring = [](double ranks) { return 2 * (ranks - 1) / ranks; };  // of an all-reduce, per byte
  const double others = (n - 1) / n;
  WireBytes bytes;
  const auto counts = count_parameters(config);
  auto dense = static_cast<double>(counts.projections + counts.backbone);
  const auto is_cut = [&](const TableConfig& table) { return n > 1 && table.rows >= shape.table_min_rows; };
  for (std::size_t t = 0; t < config.tables.size(); ++t) {
    const auto& table = config.tables[t];
    const auto dim = static_cast<double>(table.dim), elements = static_cast<double>(table.rows) * dim;
    if (!is_cut(table)) {
      dense += elements;
      continue;
    }
    const double share = shape.distinct_ids.at(t) / tp;  // of the ids: fetched by one tp peer
    bytes.tables += others * share * (kId + 2 * dim * kFloat) + (tp - 1) * share * dim * kFloat + ring(groups) * elements / n * kFloat;
  }
  // A gather or a reduce-scatter sends each element so far; a ring all-reduce is one of each.
  const double one_way = (dp - 1) / dp * kFloat;
  switch (shape.shard) {
    case Shard::kNone: bytes.dense = 2 * one_way * dense; break;
    case Shard::kOptimizer: bytes.dense = 3 * one_way * dense; break;
    case Shard::kFull: {
      // What is outside of layers: gathered and reduced once. Layers: gathered forward and, but for the last, backward, and reduced, in each pass.
      const auto layers = count_layer_parameters(config);
      const auto in_layers = static_cast<double>(std::accumulate(layers.begin(), layers.end(), std::int64_t{0}));
      bytes.dense = one_way * (2 * (dense - in_layers) + shape.micro_steps * (3 * in_layers - static_cast<double>(layers.back())));
      break;
    }
  }
  if (is_cut(config.table(config.features.front().table))) {
    const double rows = shape.num_labels / tp, dim = static_cast<double>(config.item_dim()), hidden = shape.bf16 ? 2 : kFloat;
    const double gathered = (n - 1) * rows * (dim * hidden + kId), sums = ring(n) * n * rows * 3 * kFloat;
    bytes.softmax = gathered + sums + (n - 1) * rows * dim * kFloat + (tp - 1) * rows * dim * kFloat;
  }
  return bytes;
}

FlopCounts forward_flops(const UserModelConfig& config, double num_interactions, double mean_length) {
  return forward_flops(config, num_interactions, mean_length, num_interactions);
}

}  // namespace uqa::models
