#include "models/plain/padded.h"

#include <algorithm>

namespace uqa::models::plain {

Tensor PaddedBatch::pad(const Tensor& x_T) const {
  return x_T.index_select(0, rows_N).unflatten(0, {static_cast<std::int64_t>(sequences.size()), length});
}

Tensor PaddedBatch::unpad(const Tensor& y_BS) const { return y_BS.flatten(0, 1).index_select(0, places_R); }

Tensor empty_of(const Tensor& rows, const std::vector<Tensor>& inputs) {
  auto out = rows;
  for (const auto& input : inputs) {
    if (input.defined()) out = out + input.narrow(0, 0, 0).sum();
  }
  return out;
}

PaddedBatches padded_batches(const std::vector<std::int64_t>& cu_seqlens, std::int64_t most, const std::function<std::int64_t(std::int64_t length)>& cost,
                             at::Device device) {
  const auto length_of = [&](std::size_t b) { return cu_seqlens[b + 1] - cu_seqlens[b]; };
  std::vector<std::size_t> longest_first;
  for (std::size_t b = 0; b + 1 < cu_seqlens.size(); ++b) {
    if (length_of(b) > 0) longest_first.push_back(b);
  }
  std::ranges::stable_sort(longest_first, std::greater{}, length_of);

  PaddedBatches result;
  std::vector<std::int64_t> order(static_cast<std::size_t>(cu_seqlens.back()));
  std::int64_t next = 0;
  for (std::size_t begin = 0; begin < longest_first.size();) {
    auto& batch = result.batches.emplace_back();
    batch.length = length_of(longest_first[begin]);
    const auto count = std::max<std::int64_t>(1, most / std::max<std::int64_t>(1, cost(batch.length)));
    const auto end = std::min(longest_first.size(), begin + static_cast<std::size_t>(count));
    std::vector<std::int64_t> rows, places;
    for (auto i = begin; i < end; ++i) {
      const auto b = longest_first[i];
      batch.sequences.push_back(b);
      for (std::int64_t t = 0; t < batch.length; ++t) {
        const auto row = std::min(cu_seqlens[b] + t, cu_seqlens[b + 1] - 1);
        if (t < length_of(b)) {
          places.push_back(static_cast<std::int64_t>(rows.size()));
          order[static_cast<std::size_t>(row)] = next++;
        }
        rows.push_back(row);
      }
    }
    batch.rows_N = at::tensor(rows, at::kLong).to(device);
    batch.places_R = at::tensor(places, at::kLong).to(device);
    begin = end;
  }
  result.order_T = at::tensor(order, at::kLong).to(device);
  return result;
}

}  // namespace uqa::models::plain
