#include "trainer/word_start.h"

#include <algorithm>

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"

namespace uqa::trainer {
namespace {

/// 400 users of two states, +x and -x (beside noise in a second direction). Token 1 is right about the first kind, token 2 about the
/// second; tokens 3 and 4 are never right; token 5 is right once.
struct World {
  World() {
    at::manual_seed(3);
    questions.states_SH = at::randn({400, 2});
    for (std::int64_t q = 0; q < 400; ++q) {
      const bool first = q % 2 == 0;
      questions.states_SH[q][0] = first ? 1 : -1;
      std::vector<std::vector<std::int64_t>> four{{1}, {2}, {3}, {4, 3}};
      std::rotate(four.begin(), four.begin() + q % 3, four.end());
      const std::vector<std::int64_t> right{first ? 1 : 2};
      questions.gold.push_back(std::find(four.begin(), four.end(), right) - four.begin());
      options.push_back(std::move(four));
    }
    options[7][static_cast<std::size_t>(questions.gold[7])] = {5};
    for (const auto& four : options) questions.options.push_back(&four);
  }
  WordQuestions questions;
  std::vector<std::vector<std::vector<std::int64_t>>> options;
  Tensor tokens_VL = at::eye(8);  // soft tokens show the tokens they are made of
};

TEST(WordStart, UsersLieNearTheWordsThatAreRightAboutThem) {
  const World world;
  const auto start = fit_word_start(world.questions, world.tokens_VL, 1);
  EXPECT_GT(start.accuracy, 0.9);
  EXPECT_EQ(start.weight_LH.sizes(), at::IntArrayRef({8, 2}));
  const auto soft_L = at::mv(start.weight_LH, at::tensor({1.0, 0.0}, at::kDouble));
  EXPECT_EQ(soft_L.argmax().item<std::int64_t>(), 1);
  EXPECT_EQ(soft_L.argmin().item<std::int64_t>(), 2);
  EXPECT_LT(soft_L[5].abs().item<double>(), 0.02 * soft_L[1].item<double>()) << "a token that occurs once says little";
  // The second direction says nothing about anybody.
  EXPECT_LT(start.weight_LH.select(1, 1).norm().item<double>(), 0.3 * start.weight_LH.select(1, 0).norm().item<double>());
}

TEST(WordStart, DependsOnTheSeedAlone) {
  const World world;
  const auto one = fit_word_start(world.questions, world.tokens_VL, 1).weight_LH;
  EXPECT_TRUE(at::equal(one, fit_word_start(world.questions, world.tokens_VL, 1).weight_LH));
  EXPECT_FALSE(at::equal(one, fit_word_start(world.questions, world.tokens_VL, 2).weight_LH));
}

TEST(WordStart, RefusesNoQuestions) {
  EXPECT_UQA_ERROR(fit_word_start({}, at::eye(8), 1), ErrorCode::kInternal, "0 options");
}

}  // namespace
}  // namespace uqa::trainer
