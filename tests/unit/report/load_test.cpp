#include "launch/report/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launch/report/build.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace uqa::report {
namespace {

using testing::HasSubstr;

Json accuracy(int correct, int n) { return {{"n", n}, {"correct", correct}, {"accuracy", 1.0 * correct / n}, {"low", 0.2}, {"high", 0.5}}; }

Json evaluation(const std::string& prompt) {
  const Json rule{{"types", {{"df", accuracy(30, 100)}, {"si", accuracy(40, 100)}}}, {"dimensions", Json::object()}, {"all", accuracy(70, 200)}, {"macro", {{"accuracy", 0.35}}}};
  return {{"format", "uqa.evaluation"}, {"version", 1}, {"prompt", prompt}, {"questions_digest", "d"}, {"rules", {{"text", rule}, {"letter", rule}}}, {"input_tokens_per_question", 80.5},
          {"questions_per_s", 12.0}, {"details", Json::object()}};
}

class Load : public testing::Test {
 protected:
  void write(const fs::path& path, const std::string& text) {
    fs::create_directories((dir_.path() / path).parent_path());
    write_file_atomic(dir_.path() / path, text);
  }
  void write_run(const std::string& name) {
    write(name + "/run.json", Json{{"stage", "pretrain"}, {"host", "h"}, {"versions", {{"uqa", "0.1.0"}}}, {"deviations", {"no dropout"}}, {"parameters", {{"total", 10}, {"backbone", 4}}}}.dump());
    write(name + "/config.ini", "run = " + name + "\n[optim]\npeak_lr = 0.01\n[model]\nhidden = " + std::to_string(name.size()) + "\n");
    std::string metrics;
    for (int step = 1; step <= 1000; ++step) {
      metrics += Json{{"kind", "train"}, {"step", step}, {"loss_nats", 5.0 / step}, {"seconds", 2}, {"flops_per_s", 1e9}, {"interactions_per_s", 100}, {"comm_bytes", 8}}.dump() + "\n";
    }
    metrics += Json{{"kind", "validation"}, {"step", 1000}, {"metric", "ndcg@10"}, {"ndcg@10", 0.1}}.dump() + "\n";
    write(name + "/metrics.jsonl", metrics + R"({"kind": "train", "st)");  // cut short by a crash
  }
  Loaded load_one(const std::string& word) {
    Loaded loaded;
    load(parse_source((dir_.path() / word).string()), loaded);
    return loaded;
  }
  tests::TempDir dir_;
};

TEST_F(Load, FindsWhatADirectoryIs) {
  write_run("study/runs/w8");
  write_run("study/runs/w16");
  write("study/runs/w16/eval/soft-1/result.json", evaluation("soft").dump());
  write("study/eval/none/result.json", evaluation("none").dump());
  const auto study = load_one("study");
  ASSERT_EQ(study.runs.size(), 2u);
  EXPECT_EQ(study.runs[0].name, "runs/w16");
  EXPECT_EQ(study.runs[0].train.size(), 1000u);
  EXPECT_EQ(study.runs[0].validation.size(), 1u);
  ASSERT_EQ(study.evaluations.size(), 2u);
  EXPECT_EQ(load_one("study/runs/w8").runs.size(), 1u);
  EXPECT_EQ(load_one("study/eval/none").evaluations.size(), 1u);
  write("compare.json", Json{{"evaluations", {{{"name", "soft"}, {"mean", evaluation("soft")}}}}, {"comparisons", {{"format", "uqa.comparison"}, {"version", 1}, {"comparisons", Json::array()}}}}.dump());
  EXPECT_EQ(load_one("compare.json").comparisons.size(), 1u);
  EXPECT_EQ(load_one("compare.json").evaluations[0].name, "compare.json: soft");
}

TEST_F(Load, RefusesWhatItDoesNotKnow) {
  write("empty/notes.txt", "x");
  EXPECT_UQA_ERROR((void)load_one("empty"), ErrorCode::kConfig, "holds no run, evaluation, fit or study");
  EXPECT_UQA_ERROR((void)load_one("nowhere"), ErrorCode::kConfig, "does not exist");
  write("other.json", "{}");
  EXPECT_UQA_ERROR((void)load_one("other.json"), ErrorCode::kConfig, "is no result");
  write("new/run.json", R"({"stage": "pretrain", "versions": {"uqa": "9.3.0"}})");
  EXPECT_UQA_ERROR((void)load_one("new"), ErrorCode::kConfig, "was written by uqa 9.3.0, this is uqa");
  auto newer = evaluation("soft");
  newer["version"] = 2;
  write("newer/result.json", newer.dump());
  EXPECT_UQA_ERROR((void)load_one("newer"), ErrorCode::kConfig, "version 2 of format uqa.evaluation");
  write("bad/run.json", R"({"stage": "pretrain"})");
  write("bad/metrics.jsonl", "{\"kind\": \"train\"}\nnonsense\n{}\n");
  EXPECT_UQA_ERROR((void)load_one("bad"), ErrorCode::kData, "metrics.jsonl, line 2");
}

TEST_F(Load, NamesComeFromTheUserOrTheDirectory) {
  EXPECT_EQ(parse_source("soft=a/b").name, "soft");
  EXPECT_EQ(parse_source("soft=a/b").path, "a/b");
  EXPECT_EQ(parse_source("a/b/").name, "b");
}

TEST_F(Load, APageShowsEverySection) {
  write_run("w8");
  write_run("wide");
  Loaded loaded;
  for (const char* name : {"w8", "wide"}) load(parse_source((dir_.path() / name).string()), loaded);
  loaded.evaluations.push_back({"soft", evaluation("soft")});
  const auto page = build_page(loaded, {.title = "t"});
  std::vector<std::string> ids;
  for (const auto& section : page.sections) ids.push_back(section.id);
  EXPECT_THAT(ids, testing::ElementsAre("training", "accuracy", "cost", "configuration", "deviations", "machine"));
  const auto& loss = page.sections[0].plots.at(0);
  ASSERT_EQ(loss.variants[0].series.size(), 2u);
  EXPECT_EQ(loss.variants[0].series[0].x.size(), 500u) << "thinned";
  EXPECT_EQ(loss.variants[0].series[0].x.front(), 1);
  EXPECT_EQ(loss.variants[0].series[0].x.back(), 1000);
  const auto& accuracy_plot = page.sections[1].plots.at(0);
  EXPECT_EQ(accuracy_plot.variants.size(), 2u) << "one a rule";
  EXPECT_THAT(accuracy_plot.variants[0].series[0].categories, testing::ElementsAre("df", "si", "all"));
  const auto& cost = page.sections[2].tables.at(0);
  EXPECT_EQ(cost.rows.at(0).at(6), "33.3 min");  // 1000 records of 2 s
  EXPECT_EQ(cost.rows.at(0).at(9), "2e+12");
  EXPECT_THAT(page.sections[3].tables.at(0).head, testing::ElementsAre("run", "model.hidden"));
  EXPECT_EQ(page.sections[4].tables.at(0).rows.at(0).at(1), "all");
}

}  // namespace
}  // namespace uqa::report
