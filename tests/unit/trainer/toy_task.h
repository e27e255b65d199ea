// A regression small enough to check by eye: the task of the tests of the shared loop.
#pragma once

#include <cmath>
#include <functional>

#include "core/random.h"
#include "models/tensor_io.h"
#include "trainer/training.h"

namespace uqa::trainer::test {

struct ToyBatch : TaskBatch {
  std::vector<std::vector<std::int64_t>> micro;
};

/// Sample i has 1 + i % 3 rows of two features; the targets are a fixed linear function of them plus noise. One parameter never
/// gets a gradient.
class ToyTask : public TrainingTask {
 public:
  explicit ToyTask(std::int64_t num_samples, std::int64_t micro_users = 0) : num_samples_(num_samples), micro_users_(micro_users) {
    weight_ = at::tensor({0.3F, -0.2F, 0.1F, 0.4F, 0.0F, 0.7F}).view({3, 2}).set_requires_grad(true);
    bias_ = at::zeros({3}).set_requires_grad(true);
    unused_ = at::ones({5}).set_requires_grad(true);
  }
  [[nodiscard]] std::string stage() const override { return "toy"; }
  [[nodiscard]] std::vector<NamedParameter> parameters() const override { return {{"weight", weight_}, {"unused", unused_}, {"bias", bias_}}; }
  [[nodiscard]] std::int64_t num_samples() const override { return num_samples_; }
  [[nodiscard]] std::int64_t cost(std::int64_t sample) const override { return rows_of(sample); }
  [[nodiscard]] std::unique_ptr<TaskBatch> load(const std::vector<std::int64_t>& samples) const override {
    if (on_load) on_load();
    auto batch = std::make_unique<ToyBatch>();
    for (const auto sample : samples) {
      if (batch->micro.empty() || (micro_users_ > 0 && static_cast<std::int64_t>(batch->micro.back().size()) == micro_users_)) batch->micro.emplace_back();
      batch->micro.back().push_back(sample);
      batch->num_labels += rows_of(sample);
    }
    batch->num_interactions = batch->num_labels;
    batch->num_micro_batches = static_cast<std::int64_t>(batch->micro.size());
    return batch;
  }
  [[nodiscard]] Tensor loss_sum(const TaskBatch& batch, std::int64_t micro, const models::DropoutContext& context) override {
    if (on_loss) on_loss(context.step);
    const auto& parts = static_cast<const ToyBatch&>(batch).micro;
    if (micro >= static_cast<std::int64_t>(parts.size())) return at::zeros({});
    auto loss = error_of(parts[static_cast<std::size_t>(micro)]);
    return context.step == poisoned_step ? loss * std::nanf("") : loss;
  }
  [[nodiscard]] std::optional<Validation> validate(const comm::Mesh&) override {
    if (!validates) return std::nullopt;
    const at::NoGradGuard no_grad;
    std::vector<std::int64_t> all;
    for (std::int64_t i = 0; i < num_samples_; ++i) all.push_back(i);
    const double metric = metric_of ? metric_of(validations_++) : -error_of(all).item<double>();
    return Validation{.metric = metric, .values = {{"minus_error", metric}}};
  }
  [[nodiscard]] double flops(std::int64_t interactions, std::int64_t, std::int64_t) const override { return 12.0 * static_cast<double>(interactions); }
  void set_training(bool) override {}
  void save_model(const fs::path& directory, const comm::Mesh& mesh) const override {
    if (mesh.world().rank() != 0) return;
    models::save_tensors(directory / "model.safetensors", {{"weight", weight_.detach()}, {"bias", bias_.detach()}});
  }

  std::function<void()> on_load;                      ///< on loader threads
  std::function<void(std::int64_t)> on_loss;          ///< gets the step
  std::function<double(std::int64_t)> metric_of;      ///< of the n-th validation
  bool validates = true;
  std::int64_t poisoned_step = -1;                    ///< the loss of this step is NaN

 private:
  [[nodiscard]] static std::int64_t rows_of(std::int64_t sample) { return 1 + sample % 3; }
  [[nodiscard]] Tensor error_of(const std::vector<std::int64_t>& samples) const {
    std::vector<float> x, y;
    for (const auto sample : samples) {
      for (std::int64_t row = 0; row < rows_of(sample); ++row) {
        const auto words = philox(7, static_cast<std::uint64_t>(sample), static_cast<std::uint64_t>(row));
        const float a = uniform(words[0]) - 0.5F, b = uniform(words[1]) - 0.5F, noise = 0.05F * uniform(words[2]);
        x.insert(x.end(), {a, b});
        y.insert(y.end(), {a - b + noise, 2 * b + 1, -a + 0.5F});
      }
    }
    const auto x_R2 = at::tensor(x).view({-1, 2}), y_R3 = at::tensor(y).view({-1, 3});
    return (at::addmm(bias_, x_R2, weight_.t()) - y_R3).square().sum();
  }
  std::int64_t num_samples_, micro_users_, validations_ = 0;
  Tensor weight_, bias_, unused_;
};

/// A fresh directory per test; removed at the end. The name does not depend on the process, so that a death test's child finds it.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::string& name) : path_(fs::temp_directory_path() / ("uqa_" + name)) {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

/// Records of one kind in metrics.jsonl.
inline std::vector<Json> read_records(const fs::path& run, const std::string& kind) {
  std::vector<Json> records;
  std::string text = read_file(run / "metrics.jsonl");
  for (std::size_t begin = 0; begin < text.size();) {
    const auto end = text.find('\n', begin);
    auto record = Json::parse(text.substr(begin, end - begin));
    if (record["kind"] == kind) records.push_back(std::move(record));
    begin = end + 1;
  }
  return records;
}

}  // namespace uqa::trainer::test
