#include "trainer/compare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace uqa::trainer {
namespace {

class AlignCompare : public ::testing::Test {
 protected:
  /// `correct[q]` under every rule; two questions a user, types alternate between users.
  fs::path write(const std::string& name, const std::vector<bool>& correct, std::int64_t first_id = 0) {
    std::string lines;
    for (std::size_t q = 0; q < correct.size(); ++q) {
      Prediction p{.question = fmt::format("q{}", q), .prediction = "A", .answer = correct[q] ? "A" : "B", .type = q % 4 < 2 ? "df" : "li",
                   .user = static_cast<std::int64_t>(q) / 2, .id = first_id + static_cast<std::int64_t>(q), .letter_nats = {}, .text_nats = {}, .calibrated_nats = {}, .correct = {}};
      p.answer = "A";
      for (const Rule rule : kRules) p.correct[rule] = correct[q];
      lines += to_json(p).dump() + "\n";
    }
    fs::create_directories(dir_.path() / name);
    write_file_atomic(dir_.path() / name / "predictions.jsonl", lines);
    return dir_.path() / name;
  }
  [[nodiscard]] static const Comparison& find(const CompareReport& report, const std::string& second, const std::string& scope) {
    for (const auto& c : report.comparisons) {
      if (c.rule == Rule::kText && c.second == second && c.scope == scope) return c;
    }
    throw std::runtime_error("no such comparison");
  }
  tests::TempDir dir_;
};

TEST_F(AlignCompare, GivesTheExactPOfAKnownDesign) {
  // 8 users: the first arm alone is right on both questions of 6 users, on the other 2 users both arms are wrong. Of 2^6 sign patterns 2 are
  // as extreme: p = 2/64. McNemar, by question: 12 against 0, p = 2 / 2^12.
  std::vector<bool> a(16, false), b(16, false);
  for (std::size_t q = 0; q < 12; ++q) a[q] = true;
  const auto report = compare({.name = "a", .directories = {write("a", a)}}, {{.name = "b", .directories = {write("b", b)}}}, {.num_permutations = 200000});
  const auto& all = find(report, "b", "all");
  EXPECT_EQ(all.num_questions, 16);
  EXPECT_EQ(all.num_users, 8);
  EXPECT_DOUBLE_EQ(all.first_accuracy, 0.75);
  EXPECT_DOUBLE_EQ(all.test.difference, 0.75);
  EXPECT_NEAR(all.test.p, 2.0 / 64, 0.002);
  EXPECT_NEAR(*all.mcnemar_p, 2.0 / 4096, 1e-9);
  EXPECT_EQ(all.p_holm, all.test.p) << "one comparison";
  // Types: df has users 0, 2, 4, 6, of which 3 differ; two comparisons are adjusted together.
  const auto& df = find(report, "b", "df");
  EXPECT_EQ(df.num_questions, 8);
  EXPECT_NEAR(df.test.p, 2.0 / 8, 0.005);
  EXPECT_NEAR(df.p_holm, 2 * std::min(df.test.p, find(report, "b", "li").test.p), 0.01);
  // Dimensions are a family of their own, of the same questions here as their one type.
  const auto& understanding = find(report, "b", "Sequence understanding");
  EXPECT_EQ(understanding.num_questions, 8);
  EXPECT_EQ(understanding.test.p, df.test.p);
  EXPECT_EQ(understanding.p_holm, df.p_holm);
  EXPECT_EQ(find(report, "b", "Interest perception").first_accuracy, find(report, "b", "li").first_accuracy);
  EXPECT_THROW((void)find(report, "b", "Action prediction"), std::runtime_error) << "no question has it";
}

TEST_F(AlignCompare, AveragesSeedsBeforeTheTestAndAdjustsOverArms) {
  std::vector<bool> good(16, true), half(16, false), bad(16, false);
  for (std::size_t q = 0; q < 16; q += 2) half[q] = true;
  const CompareArm first{.name = "soft", .directories = {write("s1", good), write("s2", half)}};
  const auto report = compare(first, {{.name = "none", .directories = {write("n", bad)}}, {.name = "same", .directories = {write("t", good), write("u", half)}}}, {});
  const auto& none = find(report, "none", "all");
  EXPECT_DOUBLE_EQ(none.first_accuracy, 0.75);
  EXPECT_DOUBLE_EQ(none.test.difference, 0.75);
  EXPECT_FALSE(none.mcnemar_p.has_value()) << "not a binary outcome";
  EXPECT_NEAR(none.p_holm, 2 * none.test.p, 1e-12);
  const auto& same = find(report, "same", "all");
  EXPECT_EQ(same.test.difference, 0);
  EXPECT_EQ(same.test.p, 1);
  EXPECT_THAT(render(report), ::testing::HasSubstr("soft - none"));
  EXPECT_EQ(to_json(report)["comparisons"].size(), report.comparisons.size());
}

TEST_F(AlignCompare, AClaimIsAboutTheStrongestOfTheOthers) {
  std::vector<bool> good(32, true), half(32, false), bad(32, false);
  for (std::size_t q = 0; q < 32; q += 2) half[q] = true;
  const auto arm = [&](const std::string& name, const std::vector<bool>& correct) { return CompareArm{.name = name, .directories = {write(name, correct)}}; };
  const auto report = compare(arm("soft", good), {arm("none", bad), arm("tuned", half), arm("zero", bad)});
  const auto claims = claims_of(report);
  ASSERT_EQ(claims.size(), kRules.size());
  EXPECT_EQ(claims[0].strongest, "tuned");
  EXPECT_EQ(claims[0].num_others, 3);
  EXPECT_DOUBLE_EQ(claims[0].difference, 0.5);
  EXPECT_EQ(claims[0].p_holm, find(report, "tuned", "all").p_holm);
  EXPECT_TRUE(claims[0].above_all);
  EXPECT_THAT(render(report), ::testing::HasSubstr("soft is above the 3 other(s) at level 0.05; the strongest is tuned: +50.00 %"));
  EXPECT_EQ(to_json(report)["claims"][0]["strongest_other"], "tuned");
  // As good as one of them: no claim.
  const auto tied = claims_of(compare(arm("soft", half), {arm("none", bad), arm("tuned", half)}));
  EXPECT_FALSE(tied[0].above_all);
  EXPECT_EQ(tied[0].strongest, "tuned");
}

TEST_F(AlignCompare, RefusesOtherQuestions) {
  const auto a = write("a", std::vector<bool>(8, true));
  const auto shorter = write("b", std::vector<bool>(6, true)), other = write("c", std::vector<bool>(8, true), /*first_id=*/100);
  EXPECT_UQA_ERROR(compare({.name = "a", .directories = {a}}, {{.name = "b", .directories = {shorter}}}), ErrorCode::kConfig, "8 questions");
  EXPECT_UQA_ERROR(compare({.name = "a", .directories = {a}}, {{.name = "c", .directories = {other}}}), ErrorCode::kConfig, "question 100");
  EXPECT_UQA_ERROR(compare({.name = "a", .directories = {a, other}}, {{.name = "a", .directories = {a}}}), ErrorCode::kConfig, "question 100");
  EXPECT_UQA_ERROR(compare({.name = "a", .directories = {a}}, {}), ErrorCode::kConfig, "at least two");
  EXPECT_UQA_ERROR(compare({.name = "a", .directories = {dir_.path() / "absent"}}, {{.name = "a", .directories = {a}}}), ErrorCode::kData, "absent");
  write_file_atomic(a / "predictions.jsonl", "{\"question\": 1}\n");
  EXPECT_UQA_ERROR(read_predictions(a), ErrorCode::kData, "line 1");
}

}  // namespace
}  // namespace uqa::trainer
