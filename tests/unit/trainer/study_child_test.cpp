#include <algorithm>
#include <chrono>
#include <thread>

#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "trainer/study/child.h"

namespace uqa::trainer::study {
namespace {

int wait_for(Child& child) {
  std::optional<int> code;
  while (!(code = child.poll())) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  return *code;
}

TEST(StudyChild, ALaunchersVariablesAreClearedAndTheUsersOwnStay) {
  const std::vector<std::string> ours{"PATH=/bin",           "OMPI_COMM_WORLD_RANK=3", "OMPI_COMM_WORLD_SIZE=4",  "PMIX_RANK=3",         "PMI_RANK=1",
                                      "SLURM_PROCID=3",      "SLURM_NTASKS=8",         "SLURM_JOB_ID=7",          "OMPI_MCA_btl=self,tcp", "OMPI_ALLOW_RUN_AS_ROOT=1",
                                      "SLURM_STEP_NUM_TASKS=8"};
  EXPECT_EQ(child_environment(ours, false), (std::vector<std::string>{"PATH=/bin", "OMPI_MCA_btl=self,tcp", "OMPI_ALLOW_RUN_AS_ROOT=1"}));
  EXPECT_EQ(child_environment(ours, true),
            (std::vector<std::string>{"PATH=/bin", "SLURM_NTASKS=8", "SLURM_JOB_ID=7", "OMPI_MCA_btl=self,tcp", "OMPI_ALLOW_RUN_AS_ROOT=1"}));
}

TEST(StudyChild, WordsArePassedAsTheyAreAndOutputGoesToTheLog) {
  const tests::TempDir dir;
  const auto log = dir.path() / "log";
  Child child({.argv = {"printf", "%s|", "a b", "$(touch x); `id`", "*", ""}, .log = log});
  EXPECT_EQ(wait_for(child), 0);
  EXPECT_EQ(read_file(log), "a b|$(touch x); `id`|*||");
}

TEST(StudyChild, ExitCodesAndSignalsAreReported) {
  Child seven({.argv = {"sh", "-c", "exit 75"}});
  EXPECT_EQ(wait_for(seven), 75);
  EXPECT_EQ(seven.poll(), 75) << "asked again, the same answer";
  Child killed({.argv = {"sh", "-c", "kill -9 $$"}});
  EXPECT_EQ(wait_for(killed), 128 + 9);
  EXPECT_UQA_ERROR(Child({.argv = {"uqa-no-such-program"}}), ErrorCode::kConfig, "uqa-no-such-program");
}

TEST(StudyChild, AskingToSaveIsSigusr1ToTheChildInAGroupOfItsOwn) {
  const tests::TempDir dir;
  const auto ready = dir.path() / "ready";
  Child child({.argv = {"sh", "-c", "trap 'exit 75' USR1; : > \"$1\"; while :; do sleep 0.05; done", "sh", ready.string()}});
  while (!fs::exists(ready)) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(::getpgid(child.pid()), child.pid());
  EXPECT_FALSE(child.poll().has_value());
  child.ask_to_save();
  EXPECT_EQ(wait_for(child), 75);
  Child stubborn({.argv = {"sleep", "600"}});
  stubborn.end();
  EXPECT_EQ(wait_for(stubborn), 128 + 15);
}

}  // namespace
}  // namespace uqa::trainer::study
