#include "models/packed.h"

namespace uqa::models {

std::vector<AttentionBlock> PackedLayout::causal_blocks() const {
  std::vector<AttentionBlock> blocks;
  blocks.reserve(static_cast<std::size_t>(num_sequences()));
  for (std::size_t b = 0; b + 1 < cu_seqlens.size(); ++b) blocks.push_back({.begin = cu_seqlens[b], .end = cu_seqlens[b + 1]});
  return blocks;
}

Tensor PackedLayout::positions(at::Device device) const {
  auto positions_T = at::empty({num_rows()}, at::kLong);
  auto* out = positions_T.data_ptr<std::int64_t>();
  for (std::size_t b = 0; b + 1 < cu_seqlens.size(); ++b) {
    for (std::int64_t row = cu_seqlens[b]; row < cu_seqlens[b + 1]; ++row) out[row] = row - cu_seqlens[b];
  }
  return positions_T.to(device);
}

}  // namespace uqa::models
