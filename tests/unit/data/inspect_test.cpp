#include "data/inspect.h"

#include "tests/unit/data/fixture.h"

namespace uqa::data {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class InspectTest : public DataTest {};

TEST_F(InspectTest, DataDirectoryShowsCountsSchemaAndLengths) {
  const auto data = tiny("d", 2);
  EXPECT_THAT(inspect(dir_ / "d"),
              AllOf(HasSubstr("tiny"), HasSubstr(data.digest()), HasSubstr("users           2\n"), HasSubstr("interactions    5\n"),
                    HasSubstr("1 users with fewer than 2"), HasSubstr("tags -> tag, multi-valued"), HasSubstr("min 2"), HasSubstr("max 3, mean 2.5"),
                    HasSubstr("10 to 30"), HasSubstr("shard-00001.h5")));
}

TEST_F(InspectTest, OneShardAndTheItemsAreReadAlone) {
  (void)tiny("d", 1);
  EXPECT_THAT(inspect(dir_ / "d" / "shard-00000.h5"), AllOf(HasSubstr("0 of 1"), HasSubstr("interactions    5\n"), HasSubstr("tags: 7")));
  EXPECT_THAT(inspect(dir_ / "d" / "items.h5"), HasSubstr("items           4\n"));
}

TEST_F(InspectTest, RunAndCheckpointAreRecognised) {
  fs::create_directories(dir_ / "run" / "checkpoints" / "step-5");
  write("run/run.json", R"({"version": "0.1", "parameters": {"total": 12}})");
  write("run/metrics.jsonl", "{\"step\": 1}\n{\"step\": 2}\n");
  write("run/checkpoints/step-5/manifest.json", R"({"step": 5, "tensors": {"w": {"dtype": "F32", "shape": [2, 3], "slices": []}}})");
  EXPECT_THAT(inspect(dir_ / "run"), AllOf(HasSubstr("parameters.total = 12"), HasSubstr("2 records"), HasSubstr("{\"step\": 2}"), HasSubstr("step-5")));
  EXPECT_THAT(inspect(dir_ / "run/checkpoints/step-5"), AllOf(HasSubstr("step            5\n"), HasSubstr("w F32 [2,3]")));
}

TEST_F(InspectTest, UnknownPathsSayWhatIsRecognised) {
  EXPECT_THAT(error_of([&] { (void)inspect(dir_); }), AllOf(StartsWith("3: "), HasSubstr("not recognised")));
  EXPECT_THAT(error_of([&] { (void)inspect(dir_ / "absent"); }), AllOf(StartsWith("3: "), HasSubstr("does not exist")));
  EXPECT_THAT(error_of([&] { (void)inspect(write("x.h5", "not hdf5")); }), AllOf(StartsWith("3: "), HasSubstr("x.h5")));
}

TEST_F(InspectTest, DamagedDataDirectoryIsAnError) {
  (void)tiny("d", 1);
  write("d/items.h5", "cut");
  EXPECT_THAT(error_of([&] { (void)inspect(dir_ / "d"); }), AllOf(StartsWith("3: "), HasSubstr("items.h5")));
}

}  // namespace
}  // namespace uqa::data
