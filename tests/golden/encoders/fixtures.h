// tests/golden/encoders/fixtures.h - where golden files lie, and how they are compared.
#pragma once

#include <cstdlib>
#include <string>

#include "core/file.h"
#include "core/json.h"
#include "models/packed.h"
#include "models/user_model.h"
#include "tests/support/source_dir.h"

namespace uqa::models::testing {

/// The directory in UQA_FIXTURES, else the project's own copy.
inline fs::path fixtures() {
  const char* directory = std::getenv("UQA_FIXTURES");
  return directory != nullptr ? fs::path(directory) : tests::source_dir() / "tests" / "fixtures";
}

/// Largest error over the largest magnitude expected.
inline double relative_error(const Tensor& actual, const Tensor& expected) {
  const auto difference = actual.detach().to(at::kDouble) - expected.to(at::kDouble);
  return difference.abs().max().item<double>() / expected.to(at::kDouble).abs().max().item<double>();
}

/// What encoders/<name>.json says; `what` names it in errors.
inline UserModelConfig config_from(const Json& json, const std::string& what) {
  UserModelConfig config;
  config.encoder = get<std::string>(json, "encoder", what);
  for (const auto& table : json.at("tables")) {
    config.tables.push_back({.name = get<std::string>(table, "name", what), .rows = get<std::int64_t>(table, "rows", what), .dim = get<std::int64_t>(table, "dim", what)});
  }
  for (const auto& feature : json.at("features")) {
    config.features.push_back({.name = get<std::string>(feature, "name", what), .table = get<std::string>(feature, "table", what)});
  }
  config.hidden = get<std::int64_t>(json, "hidden", what);
  config.num_layers = get<std::int64_t>(json, "layers", what);
  config.num_heads = get_or<std::int64_t>(json, "heads", 1, what);
  config.max_len = get<std::int64_t>(json, "max_len", what);
  config.inner = get_or<std::int64_t>(json, "ffn", get_or<std::int64_t>(json, "gru_hidden", 0, what), what);
  config.hstu.linear_dim = get_or<std::int64_t>(json, "linear_dim", 0, what);
  config.hstu.attention_dim = get_or<std::int64_t>(json, "attention_dim", 0, what);
  config.hstu.norm = "max_len";
  config.mamba2.head_dim = get_or<std::int64_t>(json, "head_dim", config.mamba2.head_dim, what);
  config.mamba2.state_size = get_or<std::int64_t>(json, "state_size", config.mamba2.state_size, what);
  config.mamba2.expand = get_or<std::int64_t>(json, "expand", config.mamba2.expand, what);
  config.mamba2.conv_kernel = get_or<std::int64_t>(json, "conv_kernel", config.mamba2.conv_kernel, what);
  config.mamba2.num_groups = get_or<std::int64_t>(json, "n_groups", config.mamba2.num_groups, what);
  config.mamba2.chunk = 5;  // several chunks, also for short histories
  config.ffn_multiple_of = get_or<std::int64_t>(json, "ffn_multiple_of", config.ffn_multiple_of, what);
  config.norm_eps = get_or<double>(json, "norm_eps", config.norm_eps, what);
  config.rope_base = get_or<double>(json, "rope_base", config.rope_base, what);
  config.dropout = config.attention_dropout = 0;
  return config;
}

}  // namespace uqa::models::testing
