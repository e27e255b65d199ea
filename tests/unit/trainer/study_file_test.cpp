#include <set>

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "trainer/study/hardware.h"
#include "trainer/study/study_file.h"

namespace uqa::trainer::study {
namespace {

const char* const kHead = "[study]\nname = s\ndata = d\ndirectory = out\n";

std::vector<Run> runs_of(const std::string& text) { return expand(parse_study(text, "s.ini")); }

std::vector<std::string> names_of(const std::vector<Run>& runs) {
  std::vector<std::string> names;
  for (const auto& run : runs) names.push_back(run.name);
  return names;
}

bool has(const StageCommand& stage, const std::string& word) { return std::find(stage.argv.begin(), stage.argv.end(), word) != stage.argv.end(); }

TEST(StudyFile, GridsAreCrossedAndEqualRunsOfTwoGridsAreOne) {
  const auto runs = runs_of(std::string(kHead) + "[axes.width]\nwidth = 8, 16\nseed = 1, 2\n[axes.data]\nwidth = 16\nfraction = 0.5, 1\n[pretrain]\ntrain.epochs = 3\n");
  EXPECT_EQ(names_of(runs), (std::vector<std::string>{"w8-f1-s1", "w8-f1-s2", "w16-f1-s1", "w16-f1-s2", "w16-f0.5-s1"}));
  const auto& stage = runs[4].stages.at(0);
  EXPECT_EQ(stage.argv.at(0), "pretrain");
  EXPECT_TRUE(has(stage, "--data=d"));
  EXPECT_TRUE(has(stage, "--run=out/runs/w16-f0.5-s1/pretrain"));
  EXPECT_TRUE(has(stage, "--model.hidden=16"));
  EXPECT_TRUE(has(stage, "--data.fraction=0.5"));
  EXPECT_TRUE(has(stage, "--train.seed=1"));
  EXPECT_TRUE(has(stage, "--train.epochs=3"));
  EXPECT_EQ(runs_from_json(to_json(runs), "runs").at(4).stages.at(0).argv, stage.argv);
}

TEST(StudyFile, TheLearningRateFollowsTheRule) {
  const auto rate = [](const std::string& rule, std::size_t run) {
    const auto runs = runs_of("[study]\ndata = d\n" + rule + "[axes]\nwidth = 8, 32\n");
    for (const auto& word : runs.at(run).stages.at(0).argv) {
      if (word.starts_with("--optim.peak_lr=")) return word.substr(16);
    }
    return std::string("none");
  };
  EXPECT_EQ(rate("", 0), "none");
  EXPECT_EQ(rate("peak_lr = 0.003\n", 1), "0.003");
  EXPECT_EQ(rate("lr_rule = mup\npeak_lr = 0.004\nlr_base_width = 16\n", 0), "0.008");
  EXPECT_EQ(rate("lr_rule = mup\npeak_lr = 0.004\nlr_base_width = 16\n", 1), "0.002");
  EXPECT_EQ(rate("lr_rule = table\nlr_table = 8:0.01, 32:0.005\n", 1), "0.005");
}

TEST(StudyFile, AlignmentsOfOneEncoderShareItsPreTraining) {
  const std::string head = "[study]\ndata = d\nquestions = q\ndirectory = out\nstages = pretrain, align, evaluate\n";
  const auto runs = runs_of(head + "[axes]\nwidth = 8, 16\ntokens = 1, 4\n[align]\nllm = m\nadapter.kind = qformer\n");
  EXPECT_EQ(names_of(runs), (std::vector<std::string>{"w8", "w16", "w8-k1", "w8-k4", "w16-k1", "w16-k4"}));
  EXPECT_EQ(runs[0].stages.size(), 1u);
  EXPECT_EQ(runs[0].phase, 0);
  EXPECT_EQ(runs[5].needs, std::vector<std::int64_t>{1});
  EXPECT_EQ(runs[5].phase, 1);
  ASSERT_EQ(runs[5].stages.size(), 2u);
  EXPECT_TRUE(has(runs[5].stages[0], "--encoder-run=out/runs/w16/pretrain"));
  EXPECT_TRUE(has(runs[5].stages[0], "--adapter.tokens=4"));
  EXPECT_TRUE(has(runs[5].stages[1], "--run=out/runs/w16-k4/align"));
  // One alignment an encoder: everything is one run.
  const auto joined = runs_of(head + "[axes]\nwidth = 8, 16\n[align]\nllm = m\n");
  ASSERT_EQ(joined.size(), 2u);
  EXPECT_EQ(joined[0].stages.size(), 3u);
  EXPECT_TRUE(joined[0].needs.empty());
}

TEST(StudyFile, MistakesAreNamedWithTheWayOut) {
  const auto refuse = [](const std::string& text, const std::string& part) { EXPECT_UQA_ERROR(runs_of(text), ErrorCode::kConfig, part); };
  const std::string head = kHead;
  refuse(head + "[axes]\nwitdh = 8\n", "unknown axis 'witdh'; did you mean 'width'");
  refuse(head + "[axes]\n", "the grid is empty");
  refuse(head + "[axes]\nwidth =\n", "is empty");
  refuse(head + "[axes]\nwidth = 8,,16\n", "empty value");
  refuse(head, "there is no grid");
  refuse(head + "[axes]\nwidth = 8, 8\n", "occurs twice");
  refuse(head + "[axes]\nwidth = 8, x\n", "whole number");
  refuse(head + "[axes]\nfraction = 1.5\n", "(0, 1]");
  refuse(head + "[axes]\nllm = a\n", "belongs to stage align");
  refuse(head + "[axes]\nwidth = 8\n[pretrain]\nmodel.hidden = 4\n", "which axis 'width'");
  refuse(head + "[axes]\nwidth = 8\n[align]\nllm = m\n", "does not run it");
  refuse(head + "[axse]\nwidth = 8\n", "unknown section [axse]; did you mean 'axes'");
  refuse(head + "peaklr = 1\n[axes]\nwidth = 8\n", "did you mean 'peak_lr'");
  refuse(head + "lr_rule = mup\n[axes]\nwidth = 8\n", "lr_base_width");
  refuse(head + "lr_rule = table\nlr_table = 8:0.1\n[axes]\nwidth = 8, 16\n", "no rate for width 16");
  refuse(head + "peak_lr = 1\n[axes]\nwidth = 8\n[pretrain]\noptim.peak_lr = 2\n", "remove one of them");
  refuse(head + "[axes]\nwidth = 8\nwidth = 16\n", "twice");
  refuse("[study]\nname = x\n[axes]\nwidth = 8\n", "data is not set");
  refuse("width = 8\n", "before any section");
  refuse("[study]\ndata = d\nquestions = q\nstages = pretrain, align\n[axes]\nllm = a/m, b/m\n", "one name");
  refuse("[study]\ndata = d\nstages = align\n[axes]\nwidth = 8\n", "stages = align");
}

TEST(Hardware, RatesAreInterpolatedInLogarithms) {
  Hardware hw;
  hw.measured["trm_plus"] = {{1e6, 1e9}, {1e8, 1e11}};
  EXPECT_NEAR(hw.measured_rate("trm_plus", 1e7), 1e10, 1);
  EXPECT_EQ(hw.measured_rate("trm_plus", 1), 1e9);
  EXPECT_EQ(hw.measured_rate("trm_plus", 1e12), 1e11);
  EXPECT_EQ(hw.measured_rate("sasrec", 1e7), 0);
}

}  // namespace
}  // namespace uqa::trainer::study
