#include "data/loader.h"

#include <numeric>
#include <queue>
#include <tuple>

#include "core/random.h"

namespace uqa::data {
namespace {

void check_sizes(std::int64_t num_samples, std::int64_t global_users) {
  UQA_CHECK(num_samples > 0 && global_users > 0, ErrorCode::kInternal, "num_samples = {}, global_users = {}, both must be positive", num_samples,
            global_users);
}

}  // namespace

std::int64_t batches_per_epoch(std::int64_t num_samples, std::int64_t global_users) {
  check_sizes(num_samples, global_users);
  return (num_samples - 1) / global_users + 1;
}

Cursor advance(Cursor at, std::int64_t num_samples, std::int64_t global_users) {
  check_sizes(num_samples, global_users);
  if (num_samples - at.position <= global_users) return {.epoch = at.epoch + 1, .position = 0};
  return {.epoch = at.epoch, .position = at.position + global_users};
}

Cursor cursor_at(std::int64_t step, std::int64_t num_samples, std::int64_t global_users) {
  UQA_CHECK(step >= 0, ErrorCode::kInternal, "step = {}, must not be negative", step);
  const std::int64_t per_epoch = batches_per_epoch(num_samples, global_users);
  return {.epoch = step / per_epoch, .position = step % per_epoch * global_users};
}

std::vector<std::int64_t> global_batch(std::uint64_t seed, std::int64_t epoch, std::int64_t position, std::int64_t num_samples,
                                       std::int64_t global_users) {
  check_sizes(num_samples, global_users);
  UQA_CHECK(epoch >= 0 && position >= 0 && position < num_samples, ErrorCode::kInternal,
            "cursor (epoch {}, position {}) is outside an epoch of {} samples", epoch, position, num_samples);
  const Permutation order(static_cast<std::uint64_t>(num_samples), mix_key(stream_key(seed, "order"), static_cast<std::uint64_t>(epoch)));
  const std::int64_t end = position + std::min(global_users, num_samples - position);
  std::vector<std::int64_t> samples;
  samples.reserve(static_cast<std::size_t>(end - position));
  for (std::int64_t i = position; i < end; ++i) samples.push_back(static_cast<std::int64_t>(order(static_cast<std::uint64_t>(i))));
  return samples;
}

std::vector<std::int64_t> global_batch(std::uint64_t seed, Cursor at, std::int64_t num_samples, std::int64_t global_users) {
  return global_batch(seed, at.epoch, at.position, num_samples, global_users);
}

std::vector<std::int64_t> split_balanced(std::span<const std::int64_t> samples, std::span<const std::int64_t> costs, int num_ranks,
                                         int rank) {
  UQA_CHECK(samples.size() == costs.size(), ErrorCode::kInternal, "{} samples have {} costs, one each is needed", samples.size(), costs.size());
  UQA_CHECK(num_ranks >= 1 && rank >= 0 && rank < num_ranks, ErrorCode::kInternal, "rank = {} of num_ranks = {}, must be inside", rank, num_ranks);
  std::vector<std::size_t> longest_first(samples.size());
  std::iota(longest_first.begin(), longest_first.end(), std::size_t{0});
  std::stable_sort(longest_first.begin(), longest_first.end(), [&](std::size_t a, std::size_t b) { return costs[a] > costs[b]; });

  using Load = std::tuple<std::int64_t, std::int64_t, int>;  // cost so far, samples so far, rank
  std::priority_queue<Load, std::vector<Load>, std::greater<>> loads;
  for (int r = 0; r < num_ranks; ++r) loads.emplace(0, 0, r);
  std::vector<bool> mine(samples.size(), false);
  for (const std::size_t i : longest_first) {
    const auto [cost, count, r] = loads.top();
    loads.pop();
    mine[i] = r == rank;
    loads.emplace(cost + costs[i], count + 1, r);
  }
  std::vector<std::int64_t> out;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    if (mine[i]) out.push_back(samples[i]);
  }
  return out;
}

}  // namespace uqa::data
