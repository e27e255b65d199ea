// The official scorer's result on stored predictions, equal to the last digit that it prints.
#include <gtest/gtest.h>

#include "core/json.h"
#include "data/questions/official_scorer.h"
#include "tests/support/fixtures.h"

namespace uqa::data {
namespace {

TEST(OfficialScorer, AgreesWithTheReferenceOnStoredPredictions) {
  const fs::path folder = tests::fixtures() / "metrics";
  const auto predictions = read_predictions(folder / "qa.jsonl");
  const Json expected = read_json(folder / "qa.json");
  ASSERT_GT(predictions.size(), 0u);
  ASSERT_GT(expected.size(), 0u);
  const Json actual = to_json(score_official(predictions));
  for (const auto& [key, value] : expected.items()) {
    ASSERT_TRUE(actual.contains(key)) << key;
    EXPECT_EQ(actual.at(key).at("acc"), value.at("acc")) << key;
  }
  for (const auto& [key, value] : actual.items()) {
    EXPECT_TRUE(expected.contains(key) || value.at("acc").is_null())
        << key << " is scored here and not by the reference";
  }
}

}  // namespace
}  // namespace uqa::data
