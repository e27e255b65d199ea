#include "models/cost.h"

#include "core/error.h"

namespace uqa::models {
namespace {

/// Weights of one layer's matrices, without biases and norms.
std::int64_t layer_matrix_weights(const UserModelConfig& config) {
  const auto attention = 4 * config.hidden * config.hidden;
  const auto num_mlp_matrices = config.encoder == "sasrec" ? 2 : 3;
  return attention + num_mlp_matrices * config.hidden * config.resolved_inner();
}

std::int64_t backbone_parameters(const UserModelConfig& config) {
  const auto h = config.hidden;
  if (config.encoder == "sasrec") {
    const auto biases = 3 * h + h + config.resolved_inner() + h, norms = 4 * h;
    return config.max_len * h + config.num_layers * (layer_matrix_weights(config) + biases + norms) + 2 * h;
  }
  if (config.encoder == "trm_plus") return config.num_layers * (layer_matrix_weights(config) + 2 * h);
  UQA_FAIL(ErrorCode::kConfig, "encoder = {}, its parameters are not known; must be sasrec or trm_plus", config.encoder);
}

}  // namespace

ParameterCounts count_parameters(const UserModelConfig& config) {
  ParameterCounts counts;
  for (const auto& table : config.tables) counts.tables += table.rows * table.dim;
  counts.projections = (config.feature_width() + 1) * config.hidden + (config.hidden + 1) * config.item_dim();
  counts.backbone = backbone_parameters(config);
  return counts;
}

std::int64_t count_adapter_parameters(std::int64_t encoder_hidden, std::int64_t llm_hidden) { return (encoder_hidden + 1) * llm_hidden; }

FlopCounts forward_flops(const UserModelConfig& config, double num_interactions, double mean_length, double num_labels) {
  const auto hidden = static_cast<double>(config.hidden), layers = static_cast<double>(config.num_layers);
  const auto item_dim = static_cast<double>(config.item_dim());
  const auto num_items = static_cast<double>(config.table(config.features.front().table).rows);
  FlopCounts flops;
  flops.projections = 2 * hidden * (static_cast<double>(config.feature_width()) * num_interactions + item_dim * num_labels);
  flops.backbone = 2 * layers * static_cast<double>(layer_matrix_weights(config)) * num_interactions;
  flops.attention = 2 * 2 * layers * hidden * (mean_length + 1) / 2 * num_interactions;
  flops.item_softmax = 2 * item_dim * num_items * num_labels;
  return flops;
}

FlopCounts forward_flops(const UserModelConfig& config, double num_interactions, double mean_length) {
  return forward_flops(config, num_interactions, mean_length, num_interactions);
}

}  // namespace uqa::models
