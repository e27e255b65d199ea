#include "core/random.h"

#include "core/error.h"
#include "core/hash.h"

namespace uqa {

std::uint64_t stream_key(std::uint64_t seed, std::string_view name) { return hash64(name, seed); }

std::uint64_t mix_key(std::uint64_t key, std::uint64_t value) {
  std::uint64_t z = key + 0x9E3779B97F4A7C15u * (value + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

std::uint64_t PhiloxStream::below(std::uint64_t n) {
  UQA_CHECK(n > 0, ErrorCode::kInternal, "PhiloxStream::below needs n > 0");
  const std::uint64_t threshold = -n % n;
  for (;;) {
    const std::uint64_t high = (*this)();
    const std::uint64_t word = high << 32 | (*this)();
    const auto product = static_cast<unsigned __int128>(word) * n;
    if (static_cast<std::uint64_t>(product) >= threshold) return static_cast<std::uint64_t>(product >> 64);
  }
}

double PhiloxStream::uniform_double() {
  const std::uint64_t high = (*this)();
  const std::uint64_t word = high << 32 | (*this)();
  return static_cast<double>(word >> 11) * 0x1p-53;
}

Permutation::Permutation(std::uint64_t n, std::uint64_t key) : n_(n), key_(key), half_bits_(1) {
  while (half_bits_ < 32 && (std::uint64_t{1} << (2 * half_bits_)) < n_) ++half_bits_;
}

std::uint64_t Permutation::operator()(std::uint64_t index) const {
  UQA_CHECK(index < n_, ErrorCode::kInternal, "permutation index {} is not below {}", index, n_);
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  std::uint64_t x = index;
  do {
    std::uint64_t left = x >> half_bits_, right = x & mask;
    for (std::uint64_t round = 0; round < 6; ++round) {
      const std::uint64_t next = left ^ (philox(key_, right, round)[0] & mask);
      left = right;
      right = next;
    }
    x = left << half_bits_ | right;
  } while (x >= n_);
  return x;
}

}  // namespace uqa
