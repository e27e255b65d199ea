#include "models/tensor_io.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "models/user_model.h"
#include "numeric.h"

namespace uqa::models {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

UserModelConfig small_config() {
  return {.tables = {{.name = "item", .rows = 9, .dim = 4}}, .features = {{.name = "item", .table = "item"}}, .hidden = 8, .num_layers = 1};
}

class TensorIoTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() / ("uqa_tensor_io_" + std::to_string(::getpid()));
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }
  fs::path directory_;
};

TEST_F(TensorIoTest, EveryDtypeAndShapeSurvivesARoundTrip) {
  const std::map<std::string, Tensor> tensors{{"f32", testing::random_normal({3, 4}, 1, at::kFloat)},
                                              {"bf16", testing::random_normal({5}, 2, at::kBFloat16)},
                                              {"f16", testing::random_normal({5}, 2, at::kHalf)},
                                              {"f64", testing::random_normal({2, 1, 2}, 3)},
                                              {"i64", at::arange(6, at::kLong).view({2, 3})},
                                              {"i32", at::arange(6, at::kInt)},
                                              {"u8", at::arange(5, at::kByte)},
                                              {"bool", at::arange(5) > 2},
                                              {"scalar", at::scalar_tensor(2.5)},
                                              {"empty", at::empty({0, 3})},
                                              {"strided", testing::random_normal({4, 6}, 4, at::kFloat).t()}};
  save_tensors(directory_ / "x.safetensors", tensors, {{"format", "pt"}});
  const auto loaded = load_tensors(directory_ / "x.safetensors");
  ASSERT_EQ(loaded.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(loaded.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(at::equal(loaded.at(name), tensor)) << name;
  }
}

TEST_F(TensorIoTest, AMissingFileIsADataError) {
  try {
    static_cast<void>(load_tensors(directory_ / "absent.safetensors"));
    ADD_FAILURE() << "read a file that is not there";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), HasSubstr("absent.safetensors"));
  }
}

TEST_F(TensorIoTest, AModelSurvivesARoundTripThroughAFile) {
  UserModel model(small_config()), copy(small_config());
  model->init_weights(1);
  save_tensors(directory_ / "model.safetensors", state_dict(*model));
  load_state_dict(*copy, load_tensors(directory_ / "model.safetensors"), "model.safetensors");
  for (const auto& [name, tensor] : state_dict(*model)) EXPECT_TRUE(at::equal(tensor, state_dict(*copy).at(name))) << name;
}

TEST_F(TensorIoTest, StateDictSharesMemoryWithTheModule) {
  UserModel model(small_config());
  state_dict(*model).at("proj1.bias").fill_(7);
  EXPECT_EQ(model->named_parameters()["proj1.bias"].min().item<float>(), 7);
}

TEST_F(TensorIoTest, AMismatchListsWhatIsMissingLeftOverAndReshaped) {
  UserModel model(small_config());
  auto tensors = state_dict(*model);
  for (auto& [name, tensor] : tensors) tensor = tensor + 1;
  tensors.erase("proj1.bias");
  tensors["proj2.bias"] = at::zeros({5});
  tensors["extra"] = at::zeros({1});
  try {
    load_state_dict(*model, tensors, "weights.safetensors");
    ADD_FAILURE() << "loaded weights of another model";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("weights.safetensors"), HasSubstr("missing: proj1.bias"), HasSubstr("left over: extra"),
                                    HasSubstr("of another shape: proj2.bias [5] instead of [4]")));
  }
  EXPECT_EQ(testing::max_abs(model->named_parameters()["proj1.weight"]), 0) << "nothing may be copied when something does not fit";
}

}  // namespace
}  // namespace uqa::models
