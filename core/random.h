// core/random.h - counter-based random numbers: the same (seed, stream, index) gives the same number on every rank,
// thread and world size. Philox4x32-10, Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC'11).
//
//   const std::uint64_t key = stream_key(seed, "init/backbone.layers.0.attn.q_proj.weight");
//   const float u = uniform(philox(key, element / 4)[element % 4]);
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace uqa {

/// Four 32-bit words for counter (lo, hi) under `key`.
[[nodiscard]] constexpr std::array<std::uint32_t, 4> philox(std::uint64_t key, std::uint64_t counter_lo, std::uint64_t counter_hi = 0) {
  std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  std::array<std::uint32_t, 4> c{static_cast<std::uint32_t>(counter_lo), static_cast<std::uint32_t>(counter_lo >> 32),
                                 static_cast<std::uint32_t>(counter_hi), static_cast<std::uint32_t>(counter_hi >> 32)};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c[0], p1 = std::uint64_t{0xCD9E8D57u} * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

/// Uniform in [0, 1) with 24 bits.
[[nodiscard]] constexpr float uniform(std::uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

/// Key of a named stream: equal for equal (seed, name) everywhere.
[[nodiscard]] std::uint64_t stream_key(std::uint64_t seed, std::string_view name);
/// Mixes one more number into a key (splitmix64 finalizer).
[[nodiscard]] std::uint64_t mix_key(std::uint64_t key, std::uint64_t value);

/// A small sequential generator on top of philox, for code that draws one number after the other (question builder,
/// bootstrap). Satisfies UniformRandomBitGenerator; do not use std:: distributions (they differ between libraries).
class PhiloxStream {
 public:
  using result_type = std::uint32_t;
  explicit PhiloxStream(std::uint64_t key) : key_(key) {}
  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return 0xFFFFFFFFu; }
  result_type operator()() {
    if (next_ == 4) {
      block_ = philox(key_, counter_++);
      next_ = 0;
    }
    return block_[next_++];
  }
  /// Uniform integer in [0, n), n > 0, without modulo bias (Lemire).
  std::uint64_t below(std::uint64_t n);
  /// Uniform in [0, 1) with 53 bits.
  double uniform_double();

 private:
  std::uint64_t key_;
  std::uint64_t counter_ = 0;
  std::array<std::uint32_t, 4> block_{};
  std::size_t next_ = 4;
};

/// A permutation of [0, n) that needs no memory: element i of the permutation chosen by `key` (Feistel network over the
/// next power of four, cycle-walked). Data order for (seed, epoch) is `Permutation(n, mix_key(stream_key(seed, "order"), epoch))`.
class Permutation {
 public:
  Permutation(std::uint64_t n, std::uint64_t key);
  [[nodiscard]] std::uint64_t operator()(std::uint64_t index) const;
  [[nodiscard]] std::uint64_t size() const noexcept { return n_; }

 private:
  std::uint64_t n_;
  std::uint64_t key_;
  unsigned half_bits_;
};

}  // namespace uqa
