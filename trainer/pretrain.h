// trainer/pretrain.h - the pre-training stage: next item over packed histories, exact softmax over every item.
//
//   auto run = trainer::RunDirectory(path, "pretrain", ini_text, /*overwrite=*/false, world.rank() == 0);
//   const auto result = trainer::run_pretrain(config, mesh, run);            // writes run/model.safetensors, model.json, result.json
//   const auto encoder = trainer::load_user_model(path);                     // what alignment starts from
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "data/batch.h"
#include "data/dataset.h"
#include "data/split.h"
#include "models/user_model.h"
#include "trainer/config.h"
#include "trainer/deviations.h"
#include "trainer/training.h"

namespace uqa::trainer {

/// A trained user encoder, as a run directory of `uqa pretrain` holds it.
struct LoadedUserModel {
  models::UserModel model{nullptr};  ///< float32, eval mode, best weights
  models::UserModelConfig config;
  Json info;                         ///< all of model.json: "schema", "data_digest", "stage", ...
};
/// Reads model.json and model.safetensors. Every tensor must be there with its shape: Error(kData) naming file and tensor.
[[nodiscard]] LoadedUserModel load_user_model(const fs::path& run_directory);
/// Keeps this rank's part of the model. Collective over tp.comm. Error(kConfig) where the degree does not fit.
void split_over(LoadedUserModel& loaded, const models::TensorParallel& tp);
/// Says once, in the log, where an encoder is not split although tp > 1. -> what run.json holds.
[[nodiscard]] Json describe_split(const std::string& encoder, const models::TensorParallel& tp);

[[nodiscard]] Json to_json(const models::UserModelConfig& config);
[[nodiscard]] models::UserModelConfig user_model_config_from_json(const Json& json, const std::string& what);

/// Wraps a packed batch in tensors without copying: the tensors keep `batch` alive. Features in schema order.
[[nodiscard]] models::UserBatch wrap_user_batch(const std::shared_ptr<const data::PackedBatch>& batch);
/// `batch->targets` as an int64 tensor [T], without copying.
[[nodiscard]] Tensor wrap_targets(const std::shared_ptr<const data::PackedBatch>& batch);

/// Model settings as a user gives them; tables and features come from the data set's schema.
struct UserModelSettings {
  std::string encoder = "trm_plus";  ///< "sasrec", "hstu", "gru4rec", "mamba2" or "trm_plus"
  std::int64_t hidden = 64;          ///< backbone width; > 0, divisible by num_heads
  std::int64_t num_layers = 2;       ///< > 0
  std::int64_t num_heads = 2;        ///< > 0
  std::int64_t inner = 0;            ///< FFN, GLU or GRU width; 0: the encoder's own rule
  std::int64_t ffn_multiple_of = 256;///< trm_plus rounding of that rule; > 0
  std::int64_t max_len = 200;        ///< most recent interactions used; > 0
  double norm_eps = 1e-5;            ///< > 0
  double rope_base = 10000;          ///< > 0
  double dropout = 0.2;              ///< hidden dropout; in [0, 1)
  double attention_dropout = 0.2;    ///< in [0, 1)
  std::int64_t item_dim = 64;        ///< width of the item table; > 0
  std::int64_t feature_dim = 16;     ///< width of every other table; > 0
  models::HstuConfig hstu;
  models::Mamba2Config mamba2;
  bool sasrec_same_start = false;    ///< sasrec: the input projections of all attention layers start as the first one's, as the reference's do
  std::string dims = "";             ///< widths of single tables: "brand=32,shop=32"
};

struct PretrainConfig {
  std::string data;                       ///< directory written by `uqa import` or `uqa synth`; required
  std::vector<std::string> features;      ///< the data set's features that the encoder sees, the item among them; empty: all (data/dataset.h: with_features)
  std::string split = "leave_one_out";    ///< data/split.h: leave_one_out, ratio:..., time:..., files:...
  double fraction = 1;                    ///< share of the training users that is used, chosen by loop.train.seed: nested (data::keep_train_fraction); in (0, 1]
  std::string read = "map";               ///< "map" or "read": how shards are read
  std::string preset = "default";         ///< where unset settings come from: "default" or "faithful" (see pretrain_preset)
  std::string metric = "NDCG@10";         ///< validation metric that decides which epoch is best: "NDCG@k" or "Recall@k", k of 1, 5, 10, 20, 50, 100
  std::int64_t eval_users = 256;          ///< users of one validation forward pass on one rank; > 0
  UserModelSettings model;
  LoopConfig loop;
  void validate() const;                  ///< Error(kConfig) naming the field; the data set is not opened
};

/// The settings that `preset` gives for `encoder` before options are applied. "default": the small sizes above. "faithful": the
/// reference's published sizes, dropout, optimizer and history length (docs/design/0007-training.md lists them). Error(kConfig).
[[nodiscard]] PretrainConfig pretrain_preset(const std::string& preset, const std::string& encoder);

/// How a run with `config` differs from the reference, whose encoder sees every feature: `features_left_out` of them are not seen here.
[[nodiscard]] Deviations pretrain_deviations(const PretrainConfig& config, std::size_t features_left_out);

/// The structure that `settings` give over `schema`. Error(kConfig) naming the field, also for a table in `dims` that is not there.
[[nodiscard]] models::UserModelConfig resolve(const UserModelSettings& settings, const data::Schema& schema);

/// Next-item pre-training as a task of the shared loop.
class PretrainTask : public TrainingTask {
 public:
  /// Opens the data set, makes the splits and this rank's part of the model with its initial weights, which depend neither on the mesh nor on
  /// its device, where the model then lives. Local; `mesh` is the one that will train.
  PretrainTask(PretrainConfig config, const comm::Mesh& mesh);
  explicit PretrainTask(PretrainConfig config);  ///< on one rank
  ~PretrainTask() override;

  [[nodiscard]] std::string stage() const override { return "pretrain"; }
  [[nodiscard]] std::vector<NamedParameter> parameters() const override;
  [[nodiscard]] std::vector<models::Layered*> layered_models() const override;
  [[nodiscard]] std::int64_t num_samples() const override;
  [[nodiscard]] std::int64_t cost(std::int64_t sample) const override;
  [[nodiscard]] std::unique_ptr<TaskBatch> load(const std::vector<std::int64_t>& samples) const override;
  [[nodiscard]] Tensor loss_sum(const TaskBatch& batch, std::int64_t micro, const models::DropoutContext& context) override;
  [[nodiscard]] std::optional<Validation> validate(const comm::Mesh& mesh) override;
  [[nodiscard]] double flops(std::int64_t num_interactions, std::int64_t num_tokens, std::int64_t num_labels) const override;
  void set_training(bool on) override;
  void save_model(const fs::path& directory, const comm::Mesh& mesh) const override;

  /// Full-catalogue Recall and NDCG at 1, 5, 10, 20, 50, 100 of the test targets, and their loss_nats (held_out_loss); nullopt when the split
  /// has none. Collective.
  [[nodiscard]] std::optional<Validation> test(const comm::Mesh& mesh);
  /// Mean next-item loss of `spans` in nats with the present weights, dropout off: at every position of users who do not train (splits by
  /// ratio and by files), else at each span's last item. Collective.
  [[nodiscard]] double held_out_loss(const std::vector<data::Span>& spans, const comm::Mesh& mesh);
  [[nodiscard]] const data::Dataset& dataset() const;
  [[nodiscard]] const data::Splits& splits() const;
  [[nodiscard]] models::UserModel model() const;                 ///< this rank's part
  [[nodiscard]] Json encoder_split() const;                      ///< describe_split()
  /// How this run differs from the reference implementation; stored in run.json.
  [[nodiscard]] Deviations deviations() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The whole stage: fills run.json, trains (or resumes), tests the best weights, writes model.safetensors, model.json and result.json.
/// Collective over mesh.world(). Returns what result.json holds.
[[nodiscard]] Json run_pretrain(const PretrainConfig& config, const comm::Mesh& mesh, RunDirectory& run);

}  // namespace uqa::trainer
