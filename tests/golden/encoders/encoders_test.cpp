// Every encoder case in the fixtures that this version can build: embeddings, hiddens, loss, every gradient, six AdamW losses.
#include <set>

#include <gtest/gtest.h>

#include "fixtures.h"
#include "models/loss/item_softmax.h"
#include "models/tensor_io.h"
#include "models/user_model.h"

namespace uqa::models {
namespace {

using testing::config_from;
using testing::fixtures;
using testing::relative_error;

constexpr double kHiddenBound = 1e-5;
constexpr double kGradientBound = 1e-4;
const std::set<std::string> kBuilt{"sasrec", "hstu", "gru4rec", "mamba2", "trm_plus"};

/// The padded batch of a fixture, packed; `rows` are the places of the packed rows among the padded ones.
struct PackedCase {
  UserBatch batch;
  Tensor targets_T;
  Tensor rows_T;
};

PackedCase pack(const std::map<std::string, Tensor>& tensors, const UserModelConfig& config) {
  PackedCase packed;
  const auto &lengths_B = tensors.at("input.lengths"), &labels_BL = tensors.at("input.labels");
  const auto max_len = labels_BL.size(1);
  std::vector<std::int64_t> rows;
  for (std::int64_t b = 0; b < lengths_B.size(0); ++b) {
    const auto length = lengths_B[b].item<std::int64_t>();
    for (std::int64_t t = 0; t < length; ++t) rows.push_back(b * max_len + t);
    packed.batch.layout.cu_seqlens.push_back(static_cast<std::int64_t>(rows.size()));
    packed.batch.layout.sample_ids.push_back(b);
  }
  packed.rows_T = at::tensor(at::ArrayRef<std::int64_t>(rows), at::kLong);
  for (const auto& feature : config.features) {
    const auto values = tensors.at("input." + feature.name + ".values").to(at::kLong), padded = tensors.at("input." + feature.name + ".offsets").to(at::kLong);
    std::vector<Tensor> bags{at::empty({0}, at::kLong)};
    std::vector<std::int64_t> offsets{0};
    for (const auto row : rows) {
      const auto begin = padded[row].item<std::int64_t>(), end = padded[row + 1].item<std::int64_t>();
      bags.push_back(values.narrow(0, begin, end - begin));
      offsets.push_back(offsets.back() + end - begin);
    }
    packed.batch.features.push_back({.values = at::cat(bags), .offsets = at::tensor(at::ArrayRef<std::int64_t>(offsets), at::kLong)});
  }
  const auto labels_T = labels_BL.reshape({-1}).index_select(0, packed.rows_T);
  packed.targets_T = labels_T.masked_fill(labels_T < 0, -1);
  return packed;
}

/// The tied item table's gradient, input rows and output head together, goes by the head's name in the fixtures.
std::string gradient_name(const std::string& parameter, const UserModelConfig& config) {
  return parameter == "ebc.bags." + config.features.front().table + ".weight" ? "grad.score_head_weight" : "grad." + parameter;
}

void check_case(const fs::path& file) {
  SCOPED_TRACE(file.string());
  const auto json = read_json(file);
  const auto config = config_from(json, file.string());
  const auto tensors = load_tensors(fs::path(file).replace_extension(".safetensors"));
  UserModel model(config);
  std::map<std::string, Tensor> weights;
  for (const auto& [name, tensor] : tensors) {
    if (name.rfind("weight.", 0) == 0) weights.emplace(name.substr(7), tensor);
  }
  load_state_dict(*model, weights, file.string());
  model->train();
  const auto packed = pack(tensors, config);
  const auto num_labels = (packed.targets_T >= 0).sum().item<std::int64_t>();
  ASSERT_GT(num_labels, 0);
  const auto of_rows = [&](const Tensor& padded) { return padded.flatten(0, 1).index_select(0, packed.rows_T); };
  const auto hiddens = [&] { return model->item_hiddens(model->forward(packed.batch, {})); };
  const auto mean_loss = [&](const Tensor& h_TD) {
    return item_softmax_loss(h_TD, model->item_table(), packed.targets_T, {.block_bytes = 1000}) / static_cast<double>(num_labels);
  };

  EXPECT_LT(relative_error(model->embed(packed.batch), of_rows(tensors.at("output.embeddings"))), 1e-6);
  const auto h_TD = hiddens();
  EXPECT_LT(relative_error(h_TD, of_rows(tensors.at("output.hiddens"))), kHiddenBound);
  const auto loss = mean_loss(h_TD);
  EXPECT_LT(relative_error(loss, tensors.at("output.loss")), kHiddenBound);

  loss.backward();
  std::set<std::string> seen;
  for (const auto& item : model->named_parameters()) {
    const auto name = gradient_name(item.key(), config);
    if (!tensors.contains(name)) {  // the reference's dead parameters get no gradient
      EXPECT_FALSE(item.value().grad().defined() && item.value().grad().abs().max().item<double>() > 0) << name;
      continue;
    }
    ASSERT_TRUE(item.value().grad().defined()) << name;
    EXPECT_LT(relative_error(item.value().grad(), tensors.at(name)), kGradientBound) << name;
    seen.insert(name);
  }
  for (const auto& [name, tensor] : tensors) {
    EXPECT_TRUE(name.rfind("grad.", 0) != 0 || seen.contains(name)) << name << " has no parameter here";
  }

  const auto& settings = json.at("optimizer");
  ASSERT_EQ(get<std::string>(settings, "kind", "optimizer"), "AdamW");
  torch::optim::AdamW optimizer(model->parameters(),
                                torch::optim::AdamWOptions(settings.at("lr").get<double>())
                                    .betas({settings.at("beta1").get<double>(), settings.at("beta2").get<double>()})
                                    .eps(settings.at("eps").get<double>())
                                    .weight_decay(settings.at("weight_decay").get<double>()));
  const auto& expected_losses = tensors.at("output.adamw_losses");
  ASSERT_EQ(expected_losses.size(0), settings.at("steps").get<std::int64_t>());
  for (std::int64_t step = 0; step < expected_losses.size(0); ++step) {
    optimizer.zero_grad();
    const auto step_loss = mean_loss(hiddens());
    EXPECT_LT(relative_error(step_loss, expected_losses[step]), kGradientBound) << "step " << step;
    step_loss.backward();
    optimizer.step();
  }
  EXPECT_LT(expected_losses[-1].item<float>(), expected_losses[0].item<float>()) << "the trajectory must move";
}

TEST(GoldenEncoders, EqualTheReference) {
  std::set<std::string> built;
  ASSERT_TRUE(fs::is_directory(fixtures() / "encoders")) << fixtures();
  std::set<fs::path> files;
  for (const auto& entry : fs::directory_iterator(fixtures() / "encoders")) {
    if (entry.path().extension() == ".json") files.insert(entry.path());
  }
  for (const auto& file : files) {
    const auto encoder = get<std::string>(read_json(file), "encoder", file.string());
    if (!kBuilt.contains(encoder)) continue;
    check_case(file);
    built.insert(encoder);
  }
  EXPECT_EQ(built, kBuilt) << "the fixtures in " << fixtures() << " lack an encoder";
}

}  // namespace
}  // namespace uqa::models
