// tests/golden/llm/packed_cases.h - packing of the golden cases and comparisons that the LLM and alignment tests share.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "models/packed.h"
#include "tests/support/fixtures.h"

namespace uqa::golden {

using tests::fixtures;

/// Entries of a folder whose name ends in `ending`, sorted, with the ending removed. Throws when the folder is not there.
inline std::vector<std::string> names_ending(const fs::path& folder, const std::string& ending) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const auto name = entry.path().filename().string();
    if (name.size() > ending.size() && name.ends_with(ending)) names.push_back(name.substr(0, name.size() - ending.size()));
  }
  std::ranges::sort(names);
  return names;
}

/// Largest error over largest magnitude.
inline double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  if (actual.sizes() != expected.sizes()) throw std::runtime_error("shapes differ");
  const double largest = expected.abs().max().item<double>();
  if (!(largest > 0)) throw std::runtime_error("the expected tensor is all zero: comparing says nothing");
  return (actual.detach().to(at::kDouble) - expected.to(at::kDouble)).abs().max().item<double>() / largest;
}

/// A batch of equally long rows with `soft` rows in front of each sequence, packed: labels moved to the row that predicts them.
struct PackedText {
  std::vector<models::AttentionBlock> blocks;
  at::Tensor positions_T;
  at::Tensor labels_T;
};
inline PackedText pack_text(const at::Tensor& labels_BS, std::int64_t soft) {
  PackedText packed;
  const auto batch = labels_BS.size(0), length = labels_BS.size(1);
  auto labels = at::full({batch, soft + length}, -100, at::kLong);
  labels.narrow(1, soft, length - 1).copy_(labels_BS.narrow(1, 1, length - 1));
  for (std::int64_t b = 0; b < batch; ++b) packed.blocks.push_back({.begin = b * (soft + length), .end = (b + 1) * (soft + length)});
  packed.positions_T = at::arange(soft + length, at::kLong).repeat({batch});
  packed.labels_T = labels.reshape({-1});
  return packed;
}

}  // namespace uqa::golden
