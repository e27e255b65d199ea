#include "trainer/run_directory.h"

#include <fstream>

#include <gtest/gtest.h>

#include "toy_task.h"

namespace uqa::trainer {
namespace {

using test::TemporaryDirectory;

std::string refusal(const fs::path& path, const std::string& stage, const std::string& ini) {
  try {
    const RunDirectory run(path, stage, ini, false, true);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kConfig);
    return e.what();
  }
  return "";
}

TEST(RunDirectory, IsReopenedOnlyWithTheSameStageAndSettings) {
  const TemporaryDirectory dir("run_reopen");
  const fs::path path = dir.path() / "run";
  EXPECT_EQ(refusal(path, "pretrain", "a=1\nb=2\n"), "");
  EXPECT_EQ(read_file(path / "config.ini"), "a=1\nb=2\n");
  EXPECT_EQ(RunDirectory::read_run_json(path)["stage"], "pretrain");
  EXPECT_EQ(refusal(path, "pretrain", "a=1\nb=4\n"), "") << "nothing to resume yet";
  EXPECT_EQ(refusal(path, "pretrain", "a=1\nb=2\n"), "");
  RunDirectory(path, "pretrain", "a=1\nb=2\n", false, true).append_metrics({{"step", 1}});
  EXPECT_EQ(refusal(path, "pretrain", "a=1\nb=2\n"), "");
  EXPECT_NE(refusal(path, "pretrain", "a=1\nb=3\n").find("line 2: stored `b=2`, given `b=3`"), std::string::npos);
  EXPECT_NE(refusal(path, "pretrain", "a=1\n").find("given `(end)`"), std::string::npos);
  EXPECT_NE(refusal(path, "align", "a=1\nb=2\n").find("holds a pretrain run, not an align run"), std::string::npos);
}

TEST(RunDirectory, RefusesSomeoneElsesDirectoryUnlessTold) {
  const TemporaryDirectory dir("run_foreign");
  std::ofstream(dir.path() / "thesis.tex") << "years of work";
  EXPECT_NE(refusal(dir.path(), "pretrain", "").find("something else"), std::string::npos);
  EXPECT_EQ(read_file(dir.path() / "thesis.tex"), "years of work");
  const RunDirectory run(dir.path(), "pretrain", "x=1\n", /*overwrite=*/true, true);
  EXPECT_FALSE(fs::exists(dir.path() / "thesis.tex"));
  EXPECT_TRUE(fs::exists(dir.path() / "config.ini"));
}

TEST(RunDirectory, OverwriteStartsAnew) {
  const TemporaryDirectory dir("run_overwrite");
  RunDirectory first(dir.path(), "pretrain", "x=1\n", false, true);
  first.append_metrics({{"step", 1}});
  const RunDirectory second(dir.path(), "align", "y=1\n", true, true);
  EXPECT_FALSE(fs::exists(dir.path() / "metrics.jsonl"));
  EXPECT_EQ(read_file(dir.path() / "config.ini"), "y=1\n");
}

TEST(RunDirectory, DropsRecordsAfterTheStepAndThoseCutShort) {
  const TemporaryDirectory dir("run_metrics");
  RunDirectory run(dir.path(), "pretrain", "", false, true);
  for (int step = 1; step <= 4; ++step) run.append_metrics({{"step", step}});
  std::ofstream(dir.path() / "metrics.jsonl", std::ios::app) << R"({"step":2,"los)";
  run.truncate_metrics(2);
  EXPECT_EQ(read_file(dir.path() / "metrics.jsonl"), "{\"step\":1}\n{\"step\":2}\n");
}

TEST(RunDirectory, MergesKeysIntoRunJson) {
  const TemporaryDirectory dir("run_json");
  RunDirectory run(dir.path(), "pretrain", "", false, true);
  run.write_run_json({{"host", "a"}, {"n", 1}});
  run.write_run_json({{"n", 2}});
  EXPECT_EQ(RunDirectory::read_run_json(dir.path()), (Json{{"stage", "pretrain"}, {"host", "a"}, {"n", 2}}));
}

TEST(RunDirectory, OfARankThatDoesNotWriteLeavesNoTrace) {
  const TemporaryDirectory dir("run_silent");
  RunDirectory run(dir.path() / "run", "pretrain", "x", false, false);
  run.append_metrics({{"step", 1}});
  run.write_run_json({{"n", 2}});
  run.truncate_metrics(0);
  EXPECT_FALSE(fs::exists(dir.path() / "run"));
}

}  // namespace
}  // namespace uqa::trainer
