// models/packed.h - what every packed (never padded) model input shares: where sequences begin and end, and the keys that
// make dropout independent of the world size.
#pragma once

#include <cstdint>
#include <vector>

#include "models/torch_pch.h"

namespace uqa::models {

using at::Tensor;

/// One node of a prefix tree: rows [begin, end) see all rows of their ancestors (a shared prompt, say) and, causally, themselves.
/// A list of blocks is in row order; a tree is a root and the blocks behind it up to the next root. A root alone is a plain sequence.
struct AttentionBlock {
  std::int64_t begin = 0, end = 0;
  std::int64_t parent = -1;  ///< index into the list of an earlier block of the same tree; -1: a root
};

/// Sequences laid end to end in T rows.
struct PackedLayout {
  std::vector<std::int64_t> cu_seqlens{0};   ///< [B + 1], starts at 0, ends at T
  std::vector<std::int64_t> sample_ids;      ///< [B] global sample ids: key dropout
  std::vector<std::int64_t> timestamps;      ///< [T] seconds; empty: none
  [[nodiscard]] std::int64_t num_sequences() const { return static_cast<std::int64_t>(cu_seqlens.size()) - 1; }
  [[nodiscard]] std::int64_t num_rows() const { return cu_seqlens.back(); }
  [[nodiscard]] std::vector<AttentionBlock> causal_blocks() const;
  /// Row's position inside its sequence. -> [T] int64 on `device`
  [[nodiscard]] Tensor positions(at::Device device = at::kCPU) const;
};

/// Where random numbers of one forward pass come from: (seed, step, micro_step) here, site and layer are added by modules,
/// sample id, position and element by the row. p = 0 or eval mode draws nothing.
struct DropoutContext {
  std::uint64_t seed = 0;
  std::int64_t step = 0;
  std::int64_t micro_step = 0;
};

}  // namespace uqa::models
