#include "models/plain/silu_attention.h"

#include <algorithm>

#include "models/layers/no_autocast.h"
#include "models/plain/padded.h"
#include "models/recompute.h"

// B sequences of a batch, padded to S rows; N heads, A width of q and k, L width of v.

namespace uqa::models::plain {
namespace {

constexpr std::int64_t kBatchScores = std::int64_t{1} << 26;

/// Elements of a one-dimensional weight. Its gradient is summed in a fixed order, as that of index_select() on a GPU is not.
Tensor weights_at(const Tensor& w, const Tensor& index) { return at::embedding(w.unsqueeze(1), index).squeeze(-1); }

/// Buckets of queries [S] and keys [S] of each sequence, uint8 [B, S, S]; any where a query does not see the key.
Tensor buckets_of(const PaddedBatch& batch, const std::vector<std::int64_t>& cu_seqlens, const TimeBuckets& buckets) {
  std::vector<std::int64_t> first_of_sequence;
  std::int64_t first = 0;
  for (std::size_t b = 0; b + 1 < cu_seqlens.size(); ++b) {
    const auto length = cu_seqlens[b + 1] - cu_seqlens[b];
    first_of_sequence.push_back(first);
    first += length * (length + 1) / 2;
  }
  const auto size = batch.length;
  auto out_BSS = at::zeros({static_cast<std::int64_t>(batch.sequences.size()), size, size}, at::kByte);
  auto* out = out_BSS.mutable_data_ptr<std::uint8_t>();
  for (const auto b : batch.sequences) {
    const auto* in = buckets.data() + first_of_sequence[b];
    for (std::int64_t t = 0; t < cu_seqlens[b + 1] - cu_seqlens[b]; ++t) {
      std::copy_n(in, t + 1, out + t * size);
      in += t + 1;
    }
    out += size * size;
  }
  return out_BSS;
}

/// What a batch of sequences needs besides its differentiable inputs.
struct BatchScoring {
  PaddedBatch batch;
  Tensor scales_B;
  Tensor buckets_BSS;  ///< undefined without a time bias
};

/// q, k, v of all rows and the weights of the bias (undefined: none) -> the batch's rows of the result, sequence after sequence.
Tensor attend_batch(const std::vector<Tensor>& inputs, const BatchScoring& scoring) {
  const NoAutocast no_autocast;
  const auto &position_w = inputs[3], &time_w = inputs[4];
  const auto heads_first = [&](const Tensor& x_TND) { return scoring.batch.pad(x_TND).transpose(1, 2); };  // [B, N, S, D]
  const auto q_BNSA = heads_first(inputs[0]), k_BNSA = heads_first(inputs[1]), v_BNSL = heads_first(inputs[2]);
  const auto row_S = at::arange(scoring.batch.length, scoring.batch.rows_N.options());
  const auto distance_SS = row_S.unsqueeze(1) - row_S;
  auto scores_BNSS = at::matmul(q_BNSA, k_BNSA.transpose(2, 3));
  if (position_w.defined()) scores_BNSS = scores_BNSS + weights_at(position_w, position_w.size(0) / 2 - distance_SS);
  if (time_w.defined()) scores_BNSS = scores_BNSS + weights_at(time_w, scoring.buckets_BSS.to(at::kInt)).unsqueeze(1);
  const auto weights_BNSS = (at::silu(scores_BNSS) * scoring.scales_B.view({-1, 1, 1, 1})).masked_fill(distance_SS < 0, 0);
  return scoring.batch.unpad(at::matmul(weights_BNSS, v_BNSL).transpose(1, 2));
}

}  // namespace

Tensor silu_attention(const Tensor& q_TNA, const Tensor& k_TNA, const Tensor& v_TNL, const PackedLayout& layout, const std::vector<double>& scales,
                      const AttentionBias& bias) {
  const auto num_heads = q_TNA.size(1);
  const auto device = q_TNA.device();
  const auto padded = padded_batches(layout.cu_seqlens, kBatchScores, [&](std::int64_t length) { return num_heads * length * length; }, device);
  if (padded.batches.empty()) return empty_of(v_TNL, {q_TNA, k_TNA, bias.position_w, bias.time_w});
  std::vector<Tensor> parts;
  for (const auto& batch : padded.batches) {
    BatchScoring scoring{.batch = batch, .scales_B = {}, .buckets_BSS = {}};
    std::vector<double> scales_of_batch;
    for (const auto b : batch.sequences) scales_of_batch.push_back(scales[b]);
    scoring.scales_B = at::tensor(scales_of_batch, at::kDouble).to(q_TNA.scalar_type()).to(device);
    if (bias.time_w.defined()) scoring.buckets_BSS = buckets_of(batch, layout.cu_seqlens, *bias.buckets).to(device);
    const auto attend = [scoring](const std::vector<Tensor>& inputs) -> std::vector<Tensor> { return {attend_batch(inputs, scoring)}; };
    parts.push_back(recomputed(LayerFunction(attend), {q_TNA, k_TNA, v_TNL, bias.position_w, bias.time_w}, {}).front());
  }
  return padded.packed(parts);
}

}  // namespace uqa::models::plain
