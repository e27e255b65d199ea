#include "models/plain/dropout.h"

#include <utility>

// R rows, G groups of 64 elements, each drawn from 8 counters. A word is 32 bits in a 64-bit integer.

namespace uqa::models::plain {
namespace {

constexpr std::int64_t kCounters = 8, kGroupElements = 64, kWordMask = 0xFFFFFFFF;

/// High and low word of multiplier * x. Integers wrap at 64 bits, so that all bits of the product are there, whatever its sign.
std::pair<Tensor, Tensor> product_words(const Tensor& x, std::int64_t multiplier) {
  const auto product = x * multiplier;
  return {product.bitwise_right_shift(32).bitwise_and(kWordMask), product.bitwise_and(kWordMask)};
}

/// Sample and position (two words) and lane of each row, [R, 3].
Tensor counters_of(const std::vector<DropoutRow>& rows, at::Device device) {
  auto words_R3 = at::empty({static_cast<std::int64_t>(rows.size()), 3}, at::kLong);
  auto* words = words_R3.mutable_data_ptr<std::int64_t>();
  for (const auto& row : rows) {
    const auto place = static_cast<std::uint64_t>(row.sample_id) << 24 | static_cast<std::uint64_t>(row.position);
    *words++ = static_cast<std::int64_t>(place & kWordMask);
    *words++ = static_cast<std::int64_t>(place >> 32);
    *words++ = row.lane & kWordMask;
  }
  return words_R3.to(device);
}

}  // namespace

Tensor dropout_factors(std::uint64_t key, const std::vector<DropoutRow>& rows, double p, std::int64_t width, std::int64_t first,
                       const at::TensorOptions& options) {
  const auto num_rows = static_cast<std::int64_t>(rows.size());
  if (num_rows == 0 || width == 0) return at::zeros({num_rows, width}, options);
  const auto first_group = first / kGroupElements, num_groups = (first + width + kGroupElements - 1) / kGroupElements - first_group;
  const auto words_R3 = counters_of(rows, options.device());
  // Philox4x32-10, all counters of all rows at once.
  auto word0 = at::arange(first_group * kCounters, (first_group + num_groups) * kCounters, words_R3.options()).unsqueeze(0);
  auto word1 = words_R3.narrow(1, 2, 1), word2 = words_R3.narrow(1, 0, 1), word3 = words_R3.narrow(1, 1, 1);
  auto key_lo = static_cast<std::uint32_t>(key), key_hi = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const auto [hi0, lo0] = product_words(word0, 0xD2511F53);
    const auto [hi1, lo1] = product_words(word2, 0xCD9E8D57);
    word0 = hi1.bitwise_xor(word1).bitwise_xor(static_cast<std::int64_t>(key_lo));
    word1 = lo1;
    word2 = hi0.bitwise_xor(word3).bitwise_xor(static_cast<std::int64_t>(key_hi));
    word3 = lo0;
    key_lo += 0x9E3779B9U;
    key_hi += 0xBB67AE85U;
  }
  const auto rate = drawn_rate(p);
  std::vector<Tensor> kept;
  for (const auto& word : {word0, word1, word2, word3}) {
    const auto word_RG8 = word.view({num_rows, num_groups, kCounters});
    kept.push_back(word_RG8.bitwise_and(0xFFFF).ge(static_cast<std::int64_t>(rate.threshold)));
    kept.push_back(word_RG8.bitwise_right_shift(16).ge(static_cast<std::int64_t>(rate.threshold)));
  }
  const auto all_RE = at::stack(kept, 2).view({num_rows, num_groups * kGroupElements});
  // Of the factor's own rounding, as a row of factors converted to the dtype has it.
  return all_RE.narrow(1, first - first_group * kGroupElements, width).to(options.dtype()).mul_(rate.keep_factor);
}

}  // namespace uqa::models::plain
