// tests/support/mutate.h - deterministic mutations of known inputs, for tests that feed parsers foreign bytes.
//
//   const auto outcome = fuzz({good_file}, {.rounds = 20'000}, [](std::string_view bytes) { parse(bytes); });
//   EXPECT_GT(outcome.refused, 0u);   // uqa::Error is fine, any other exception fails the test with the mutation's number
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/random.h"

namespace uqa::tests {

/// Makes input number i from the corpus: one to eight changes to one member. The same (corpus, seed, i) gives the same bytes.
class Mutator {
 public:
  /// `corpus` holds at least one text. Changes fall within the first `focus_bytes` of an input (0: anywhere), for files whose
  /// header is small against their data.
  Mutator(std::vector<std::string> corpus, std::uint64_t seed, std::size_t focus_bytes = 0)
      : corpus_(std::move(corpus)), key_(stream_key(seed, "mutate")), focus_bytes_(focus_bytes) {
    UQA_CHECK(!corpus_.empty(), ErrorCode::kInternal, "Mutator needs a corpus");
  }

  [[nodiscard]] std::string operator()(std::uint64_t index) const {
    PhiloxStream random(mix_key(key_, index));
    std::string bytes = pick(random);
    const std::uint64_t num_changes = 1 + random.below(random.below(4) == 0 ? 8 : 2);
    for (std::uint64_t i = 0; i < num_changes; ++i) change(bytes, random);
    return bytes;
  }

 private:
  [[nodiscard]] const std::string& pick(PhiloxStream& random) const { return corpus_[random.below(corpus_.size())]; }

  [[nodiscard]] std::size_t place(const std::string& bytes, PhiloxStream& random) const {
    const std::size_t span = focus_bytes_ == 0 ? bytes.size() : std::min(bytes.size(), focus_bytes_);
    return random.below(span + 1);
  }

  void change(std::string& bytes, PhiloxStream& random) const {
    static constexpr std::array<std::string_view, 24> kWords{
        "0", "-1", "1", "4294967296", "9223372036854775807", "9223372036854775808", "18446744073709551615", "1e999", "null", "true", "[]", "{}",
        "\"\"", "\"", "\\", "[[[[[[[[", "\n", " ", "\xFF", "\xE4\xB8", "\xED\xA0\x80", ",", "\\u0000", "<|im_end|>"};
    const std::size_t at = place(bytes, random);
    const std::size_t length = std::min<std::size_t>(bytes.size() - at, 1 + random.below(random.below(8) == 0 ? 200 : 8));
    switch (random.below(8)) {
      case 0:  // flip one bit
        if (at < bytes.size()) bytes[at] = static_cast<char>(static_cast<unsigned char>(bytes[at]) ^ (1u << random.below(8)));
        break;
      case 1:  // any byte
        if (at < bytes.size()) bytes[at] = static_cast<char>(static_cast<unsigned char>(random.below(256)));
        break;
      case 2:
        bytes.erase(at, length);
        break;
      case 3:  // say it twice
        bytes.insert(at, bytes.substr(at, length));
        break;
      case 4:
        bytes.insert(at, kWords[random.below(kWords.size())]);
        break;
      case 5:
        bytes.replace(at, length, kWords[random.below(kWords.size())]);
        break;
      case 6: {  // splice from a member of the corpus
        const std::string& other = pick(random);
        const std::size_t from = place(other, random);
        bytes.insert(at, other.substr(from, 1 + random.below(64)));
        break;
      }
      default:
        if (random.below(4) == 0) {
          bytes.resize(at);
        } else if (at < bytes.size()) {  // a neighbour's value: keeps numbers numbers and letters letters
          bytes[at] = static_cast<char>(static_cast<unsigned char>(bytes[at]) + (random.below(2) == 0 ? 1u : 255u));
        }
    }
  }

  std::vector<std::string> corpus_;
  std::uint64_t key_;
  std::size_t focus_bytes_;
};

struct FuzzOptions {
  std::uint64_t rounds = 10'000;  ///< mutations; the environment variable UQA_FUZZ_FACTOR multiplies it
  std::uint64_t seed = 1;
  std::size_t focus_bytes = 0;    ///< see Mutator
};

struct FuzzOutcome {
  std::uint64_t accepted = 0, refused = 0;
};

/// Calls `target(bytes)` for each mutation. It must return or throw uqa::Error with code kData or kConfig and a one-line message;
/// anything else is a test failure that names the mutation's number.
template <typename Target>
FuzzOutcome fuzz(std::vector<std::string> corpus, const FuzzOptions& options, const Target& target) {
  const char* const factor = std::getenv("UQA_FUZZ_FACTOR");
  const std::uint64_t rounds = options.rounds * (factor != nullptr ? std::strtoull(factor, nullptr, 10) : 1);
  const Mutator mutate(std::move(corpus), options.seed, options.focus_bytes);
  FuzzOutcome outcome;
  for (std::uint64_t i = 0; i < rounds && !::testing::Test::HasFailure(); ++i) {
    const std::string bytes = mutate(i);
    try {
      target(std::string_view(bytes));
      ++outcome.accepted;
    } catch (const Error& e) {
      ++outcome.refused;
      EXPECT_TRUE(e.code() == ErrorCode::kData || e.code() == ErrorCode::kConfig) << "mutation " << i << ": " << e.what();
      EXPECT_LT(std::string_view(e.what()).size(), 2000u) << "mutation " << i << ": " << e.what();
    } catch (const std::exception& e) {
      ADD_FAILURE() << "mutation " << i << ": " << e.what();
    }
  }
  return outcome;
}

}  // namespace uqa::tests
