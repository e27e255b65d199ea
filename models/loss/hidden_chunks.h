// models/loss/hidden_chunks.h - the labelled hiddens of all ranks of a table group, gathered a chunk at a time; private to models/loss.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/error.h"
#include "models/loss/item_softmax.h"
#include "models/parallel/layout.h"

namespace uqa::models {

/// One chunk: some rows of every rank, in rank order. The same on all ranks but for `own`.
struct HiddenChunk {
  std::vector<std::int64_t> rows;  ///< of each rank
  std::int64_t num_rows = 0;       ///< of all
  std::int64_t own_position = 0;   ///< of this rank's rows in the chunk
  SliceRange own;                  ///< of this rank's contribution
};

/// How `own_rows` rows of this rank and those of the others are cut into chunks. Collective over shards.table; one chunk of everything
/// without row shards.
class HiddenChunks {
 public:
  HiddenChunks(std::int64_t own_rows, const ItemShards& shards, std::int64_t gather_rows) : shards_(shards) {
    if (shards.table.size() == 1) {
      all_rows_ = {own_rows};
      per_rank_ = std::max<std::int64_t>(1, own_rows);
    } else {
      const auto rows = comm::all_gather(at::full({1}, own_rows, at::kLong), shards.table).contiguous();
      all_rows_.assign(rows.const_data_ptr<std::int64_t>(), rows.const_data_ptr<std::int64_t>() + rows.numel());
      per_rank_ = std::max<std::int64_t>(1, gather_rows / shards.table.size());
    }
    const auto most = *std::max_element(all_rows_.begin(), all_rows_.end());
    num_chunks_ = (most + per_rank_ - 1) / per_rank_;
  }

  [[nodiscard]] std::int64_t size() const { return num_chunks_; }
  [[nodiscard]] std::int64_t total_rows() const {
    std::int64_t sum = 0;
    for (const auto rows : all_rows_) sum += rows;
    return sum;
  }
  [[nodiscard]] HiddenChunk operator[](std::int64_t index) const {
    HiddenChunk chunk;
    const auto me = static_cast<std::size_t>(shards_.table.rank());
    for (std::size_t r = 0; r < all_rows_.size(); ++r) {
      const auto begin = std::min(index * per_rank_, all_rows_[r]), end = std::min(begin + per_rank_, all_rows_[r]);
      if (r == me) {
        chunk.own = {.begin = begin, .length = end - begin};
        chunk.own_position = chunk.num_rows;
      }
      chunk.rows.push_back(end - begin);
      chunk.num_rows += end - begin;
    }
    return chunk;
  }
  /// The chunk's rows of every rank's `own` [own_rows, ...]. Collective.
  [[nodiscard]] Tensor gather(const Tensor& own, const HiddenChunk& chunk) const {
    const auto part = own.narrow(0, chunk.own.begin, chunk.own.length);
    return shards_.table.size() == 1 ? part : comm::all_gather(part, shards_.table);
  }

 private:
  const ItemShards& shards_;
  std::vector<std::int64_t> all_rows_;
  std::int64_t per_rank_ = 1, num_chunks_ = 0;
};

/// The rows of a step that this rank contributes.
struct OwnRows {
  Tensor labelled_L;  ///< int64: rows with a label
  SliceRange share;   ///< of them: contributed by this tp peer
  Tensor rows_l;      ///< int64: those rows
  Tensor targets_l;   ///< int64
};

[[nodiscard]] inline OwnRows own_rows(const Tensor& h_TD, const Tensor& w_VD, const Tensor& targets_T, const ItemSoftmaxOptions& options, const ItemShards& shards) {
  const auto num_items = shards.num_rows > 0 ? shards.num_rows : w_VD.size(0);
  const auto range = even_range(num_items, shards.table.rank(), shards.table.size());
  UQA_CHECK(h_TD.dim() == 2 && w_VD.dim() == 2 && h_TD.size(1) == w_VD.size(1) && targets_T.dim() == 1 && targets_T.size(0) == h_TD.size(0) &&
                num_items > 0 && w_VD.size(0) == range.length,
            ErrorCode::kInternal, "item softmax: hiddens [{}], items [{}] (rows {} to {} of {}), targets [{}] do not fit", fmt::join(h_TD.sizes(), ", "),
            fmt::join(w_VD.sizes(), ", "), range.begin, range.begin + range.length, num_items, fmt::join(targets_T.sizes(), ", "));
  UQA_CHECK(targets_T.scalar_type() == at::kLong, ErrorCode::kInternal, "item softmax: targets must be int64");
  UQA_CHECK(options.block_bytes > 0 && options.gather_rows > 0 && options.keep_bytes >= 0, ErrorCode::kConfig,
            "block_bytes = {}, gather_rows = {}, keep_bytes = {}, must be > 0, > 0 and >= 0", options.block_bytes, options.gather_rows, options.keep_bytes);
  OwnRows own;
  own.labelled_L = at::nonzero(targets_T >= 0).squeeze(1);  // where the targets are; then to the hiddens' device
  own.share = even_range(own.labelled_L.size(0), shards.tp.rank(), shards.tp.size());
  own.rows_l = own.labelled_L.narrow(0, own.share.begin, own.share.length);
  own.targets_l = targets_T.index_select(0, own.rows_l);
  if (own.targets_l.size(0) > 0) {
    const auto largest = own.targets_l.max().item<std::int64_t>();
    UQA_CHECK(largest < num_items, ErrorCode::kData, "target item = {}, must be below the {} items of the table", largest, num_items);
  }
  for (auto* x : {&own.labelled_L, &own.rows_l, &own.targets_l}) *x = x->to(h_TD.device());
  return own;
}

}  // namespace uqa::models
