// data/questions/sampler.h - draws questions of one type such that the options and their order say nothing about the
// answer.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/questions/builder.h"
#include "data/questions/facts.h"

namespace uqa::data {

struct SamplerInput {
  FactFinder& finder;
  const std::vector<History>& histories;  ///< the (user, end) pairs that questions may be about
  const QuestionBuildOptions& options;
};

/// Up to `wanted` questions of `type`, ids unset; fewer when option sets run out. The option set is drawn first: four
/// distinct values from the distribution of true answers given the stem. It is kept only if *every* one of the four is
/// the only true one for some history not yet used that way, so that no set is kept or dropped because of which option
/// became gold. `random_key` picks the numbers; `advance(n)` is called as questions are made.
[[nodiscard]] std::vector<Question> sample_questions(const SamplerInput& input, QuestionType type, std::int64_t wanted,
                                                     std::uint64_t random_key,
                                                     const std::function<void(std::int64_t)>& advance);

}  // namespace uqa::data
