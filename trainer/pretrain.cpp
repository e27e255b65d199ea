#include "trainer/pretrain.h"

#include <algorithm>
#include <cmath>

#include "core/log.h"
#include "models/cost.h"
#include "models/loss/item_softmax.h"
#include "models/recompute.h"
#include "trainer/autocast.h"
#include "trainer/device.h"
#include "trainer/next_item_eval.h"
#include "trainer/run_info.h"
#include "trainer/save_whole.h"

namespace uqa::trainer {
namespace {

struct PretrainBatch : TaskBatch {
  std::vector<std::shared_ptr<const data::PackedBatch>> micro;
};

/// Gives the attention of every layer the input projection that the first one starts with.
void copy_first_attention(models::UserModelImpl& model) {
  const at::NoGradGuard no_grad;
  Tensor first;
  for (const auto& parameter : model.named_parameters()) {
    if (!parameter.key().ends_with("self_attn.in_proj_weight")) continue;
    if (!first.defined()) first = parameter.value();
    parameter.value().copy_(first);
  }
}

}  // namespace

struct PretrainTask::Impl {
  PretrainConfig config;
  data::Dataset data;           ///< with the chosen features
  std::size_t num_features = 0; ///< of the whole data set
  data::Splits splits;
  models::UserModelConfig model_config;
  models::UserModel model{nullptr};
  Json split;              ///< how the encoder lies on the ranks
  at::Device device{at::kCPU};
  double mean_length = 1;  ///< of a training history: attention's share of the FLOPs
  [[nodiscard]] bool bf16() const { return config.loop.train.dtype == "bf16"; }
  void open(PretrainConfig given);

  std::optional<Validation> evaluate(const std::vector<data::Span>& spans, const comm::Mesh& mesh) {
    if (spans.empty()) return std::nullopt;
    model->eval();
    const auto result = evaluate_next_item(*model, data, spans, mesh.dp(), {.batch_users = config.eval_users});
    Validation validation{.metric = result.values.at(config.metric), .values = result.values};
    validation.values["users"] = static_cast<double>(result.num_users);
    return validation;
  }
};

PretrainTask::PretrainTask(PretrainConfig config, const comm::Mesh& mesh) : impl_(std::make_unique<Impl>()) {
  auto& s = *impl_;
  s.device = mesh.device();
  // Agreed before ranks meet in the model: a tensor-parallel one splits their group.
  comm::run_agreed(mesh.world(), [&] { s.open(std::move(config)); });
  const auto tp = models::tensor_parallel(mesh.tp(), s.config.loop.parallel.encoder_degree(), "parallel.tp");
  comm::run_agreed(mesh.world(), [&] {
    const auto& parallel = s.config.loop.parallel;
    models::TableSharding sharding;
    if (parallel.tables == "sharded") sharding = {.table = mesh.table(), .tp = mesh.tp(), .min_rows = parallel.table_min_rows};
    s.model = models::UserModel(s.model_config, sharding, tp);
    s.model->init_weights(static_cast<std::uint64_t>(s.config.loop.train.seed));
    if (s.config.model.sasrec_same_start) copy_first_attention(*s.model);
    move_to(*s.model, s.device);
    s.split = describe_split(s.model_config.encoder, tp);
  });
}

void PretrainTask::Impl::open(PretrainConfig given) {
  given.validate();
  auto& s = *this;
  s.config = std::move(given);
  s.data = data::Dataset::open(s.config.data, s.config.read == "map" ? data::ReadMode::kMap : data::ReadMode::kRead);
  s.num_features = s.data.schema().features.size();
  if (!s.config.features.empty()) s.data = s.data.with_features(s.config.features);
  s.splits = data::make_splits(s.data, data::parse_split(s.config.split), s.config.model.max_len);
  data::keep_train_fraction(s.splits, s.config.fraction, static_cast<std::uint64_t>(s.config.loop.train.seed));
  s.model_config = resolve(s.config.model, s.data.schema());
  UQA_CHECK(s.model_config.encoder != "hstu" || s.model_config.hstu.bias != "position_time" || !s.data.timestamps(0, 0, 1).empty(), ErrorCode::kConfig,
            "model.hstu.bias = position_time, but data {} has no timestamps; choose --model.hstu.bias position or none, or import a log with times", s.config.data);
  double rows = 0;
  for (const auto& span : s.splits.train) rows += static_cast<double>(span.end - span.begin - 1);
  s.mean_length = rows / static_cast<double>(std::max<std::size_t>(s.splits.train.size(), 1));
}

PretrainTask::PretrainTask(PretrainConfig config) : PretrainTask(std::move(config), comm::Mesh(comm::Communicator(), 0, 1)) {}

PretrainTask::~PretrainTask() = default;

std::vector<NamedParameter> PretrainTask::parameters() const { return trained_of(*impl_->model); }

std::vector<models::Layered*> PretrainTask::layered_models() const { return {&impl_->model->layers()}; }

std::int64_t PretrainTask::num_samples() const { return static_cast<std::int64_t>(impl_->splits.train.size()); }

std::int64_t PretrainTask::cost(std::int64_t sample) const {
  const auto& span = impl_->splits.train[static_cast<std::size_t>(sample)];
  return span.end - span.begin;
}

std::unique_ptr<TaskBatch> PretrainTask::load(const std::vector<std::int64_t>& samples) const {
  auto batch = std::make_unique<PretrainBatch>();
  const std::size_t limit = impl_->config.loop.batch.micro_users == 0 ? samples.size() : static_cast<std::size_t>(impl_->config.loop.batch.micro_users);
  for (std::size_t begin = 0; begin < samples.size(); begin += limit) {
    const std::vector<std::int64_t> ids(samples.begin() + static_cast<std::ptrdiff_t>(begin),
                                        samples.begin() + static_cast<std::ptrdiff_t>(std::min(begin + limit, samples.size())));
    std::vector<data::Span> spans;
    for (const auto id : ids) spans.push_back(impl_->splits.train[static_cast<std::size_t>(id)]);
    auto packed = std::make_shared<const data::PackedBatch>(data::pack(impl_->data, spans, ids, data::Targets::kNext));
    batch->num_labels += std::count_if(packed->targets.begin(), packed->targets.end(), [](std::int64_t t) { return t >= 0; });
    batch->num_interactions += packed->num_interactions();
    batch->micro.push_back(std::move(packed));
  }
  batch->num_micro_batches = static_cast<std::int64_t>(batch->micro.size());
  return batch;
}

Tensor PretrainTask::loss_sum(const TaskBatch& batch, std::int64_t micro, const models::DropoutContext& context) {
  const auto& parts = static_cast<const PretrainBatch&>(batch).micro;
  auto& model = *impl_->model;
  const bool has_rows = micro < static_cast<std::int64_t>(parts.size());
  // Where tables are cut, a rank without rows still answers the others, in backward too.
  if (!has_rows && !model.shards_tables()) return at::zeros({}, at::kFloat);
  const auto packed = has_rows ? parts[static_cast<std::size_t>(micro)] : nullptr;
  Tensor h_TD;
  {
    const AutocastBf16 autocast(impl_->bf16(), impl_->device.type());
    const models::RecomputeLayers recompute(impl_->config.loop.memory.recompute == "layers");
    h_TD = model.item_hiddens(model.forward(to_device(has_rows ? wrap_user_batch(packed) : model.empty_batch(), impl_->device), context));
  }
  const auto targets_T = (has_rows ? wrap_targets(packed) : at::empty({0}, at::kLong)).to(impl_->device);
  return models::item_softmax_loss(h_TD.to(at::kFloat), model.item_table(), targets_T, {.bf16 = impl_->bf16()}, model.item_shards());
}

std::optional<Validation> PretrainTask::validate(const comm::Mesh& mesh) {
  auto validation = impl_->evaluate(impl_->splits.valid, mesh);
  if (validation) validation->values["loss_nats"] = held_out_loss(impl_->splits.valid, mesh);
  return validation;
}

std::optional<Validation> PretrainTask::test(const comm::Mesh& mesh) {
  auto validation = impl_->evaluate(impl_->splits.test, mesh);
  if (validation) validation->values["loss_nats"] = held_out_loss(impl_->splits.test, mesh);
  return validation;
}

double PretrainTask::held_out_loss(const std::vector<data::Span>& spans, const comm::Mesh& mesh) {
  const at::NoGradGuard no_grad;
  auto& s = *impl_;
  s.model->eval();
  const auto kind = data::parse_split(s.config.split).kind;
  const bool every_position = kind == data::SplitKind::kRatio || kind == data::SplitKind::kFiles;
  const auto& dp = mesh.dp();
  const auto total = static_cast<std::int64_t>(spans.size()), batch_users = s.config.eval_users;
  const std::int64_t first = total * dp.rank() / dp.size(), last = total * (dp.rank() + 1) / dp.size();
  // As many passes on every rank, since a sharded softmax talks in each.
  const std::int64_t most = (total + dp.size() - 1) / dp.size(), passes = (most + batch_users - 1) / batch_users;
  double loss = 0;
  std::int64_t labels = 0;
  for (std::int64_t pass = 0; pass < passes; ++pass) {
    PretrainBatch batch;
    const std::int64_t begin = std::min(first + pass * batch_users, last), end = std::min(begin + batch_users, last);
    if (begin < end) {
      std::vector<std::int64_t> ids;
      for (std::int64_t i = begin; i < end; ++i) ids.push_back(i);
      const std::vector<data::Span> part(spans.begin() + begin, spans.begin() + end);
      auto packed = std::make_shared<data::PackedBatch>(data::pack(s.data, part, ids, data::Targets::kNext));
      for (std::size_t b = 1; !every_position && b < packed->cu_seqlens.size(); ++b) {
        for (auto t = packed->cu_seqlens[b - 1]; t + 1 < packed->cu_seqlens[b]; ++t) packed->targets[static_cast<std::size_t>(t)] = -1;
      }
      labels += std::count_if(packed->targets.begin(), packed->targets.end(), [](std::int64_t t) { return t >= 0; });
      batch.micro.push_back(std::move(packed));
    }
    loss += loss_sum(batch, 0, {}).item<double>();
  }
  // Ranks sum whole numbers: multiples of 2^-24 nats.
  constexpr double kGrid = 0x1p24;
  const auto sum = comm::all_reduce(static_cast<std::int64_t>(std::llround(loss * kGrid)), comm::ReduceOp::kSum, dp);
  return static_cast<double>(sum) / kGrid / static_cast<double>(comm::all_reduce(labels, comm::ReduceOp::kSum, dp));
}

double PretrainTask::flops(std::int64_t num_interactions, std::int64_t /*num_tokens*/, std::int64_t num_labels) const {
  const double rows = static_cast<double>(num_interactions), labels = static_cast<double>(num_labels);
  return 3 * models::forward_flops(impl_->model_config, rows, impl_->mean_length, labels).total();
}

void PretrainTask::set_training(bool on) { impl_->model->train(on); }

void PretrainTask::save_model(const fs::path& directory, const comm::Mesh& mesh) const {
  const auto& s = *impl_;
  const Json json{{"format", "uqa.user_model"},
                  {"version", 1},
                  {"stage", stage()},
                  {"model", to_json(s.model_config)},
                  {"schema", s.data.schema().to_json()},
                  {"data_digest", s.data.digest()},
                  {"split", s.config.split},
                  {"preset", s.config.preset}};
  auto tensors = parameters();
  for (const auto& buffer : s.model->named_buffers()) tensors.push_back({buffer.key(), buffer.value()});
  std::ranges::sort(tensors, {}, &NamedParameter::name);
  save_whole_tensors(directory / "model.safetensors", tensors, mesh);
  comm::run_agreed(mesh.world(), [&] {
    if (mesh.world().rank() != 0) return;
    write_file_atomic(directory / "model.json", json.dump(2) + "\n");
  });
}

const data::Dataset& PretrainTask::dataset() const { return impl_->data; }
const data::Splits& PretrainTask::splits() const { return impl_->splits; }
models::UserModel PretrainTask::model() const { return impl_->model; }
Json PretrainTask::encoder_split() const { return impl_->split; }

Deviations PretrainTask::deviations() const { return pretrain_deviations(impl_->config, impl_->num_features - impl_->data.schema().features.size()); }

Json run_pretrain(const PretrainConfig& config, const comm::Mesh& mesh, RunDirectory& run) {
  const auto& world = mesh.world();
  std::unique_ptr<PretrainTask> task;
  comm::run_agreed(world, [&] { task = std::make_unique<PretrainTask>(config, mesh); });
  set_num_threads(config.loop.train.num_threads, world);
  const auto& splits = task->splits();
  Json info = describe_run(mesh);
  const auto deviations = task->deviations();
  info["deviations"] = deviations.to_json();
  info["encoder_split"] = task->encoder_split();
  info["memory"] = {{"recompute", config.loop.memory.recompute}};
  info["data"] = {{"path", config.data},
                  {"digest", task->dataset().digest()},
                  {"users", task->dataset().num_users()},
                  {"interactions", task->dataset().num_interactions()},
                  {"fraction", config.fraction},
                  {"train_users", splits.train.size()},
                  {"valid_users", splits.valid.size()},
                  {"test_users", splits.test.size()},
                  {"users_without_train", splits.users_without_train},
                  {"users_without_eval", splits.users_without_eval},
                  {"users_left_out", splits.users_left_out}};
  const auto counts = models::count_parameters(task->model()->config());
  info["parameters"] = {{"tables", counts.tables}, {"projections", counts.projections}, {"backbone", counts.backbone}, {"total", counts.total()}};
  info["flops"] = {{"convention", models::kFlopsConvention},
                   {"training_per_interaction", task->flops(1, 0, 0)},
                   {"training_per_label", task->flops(0, 0, 1)}};
  comm::run_agreed(world, [&] { run.write_run_json(info); });
  log::info("pretrain", "{}: {} users to train on, {} to validate, {} to test; {} parameters in tables, {} in the rest", config.model.encoder,
            splits.train.size(), splits.valid.size(), splits.test.size(), counts.tables, counts.total() - counts.tables);

  deviations.print("pretrain");
  const auto trained = run_training(*task, config.loop, mesh, run);
  const auto test = task->test(mesh);
  Json result{{"stage", task->stage()},
              {"steps", trained.steps},
              {"epochs", trained.epochs},
              {"last_loss_nats", trained.last_loss_nats},
              {"interactions", trained.interactions},
              {"labels", trained.labels},
              {"flops", trained.flops},
              {"best_step", trained.best_step},
              {"stopped_early", trained.stopped_early},
              {"metric", config.metric}};
  if (trained.best_metric) result["best_valid_metric"] = *trained.best_metric;
  if (test) result["test"] = test->values;
  comm::run_agreed(world, [&] {
    if (!run.writer()) return;
    write_file_atomic(run.path() / "result.json", result.dump(2) + "\n");
    run.write_run_json({{"result", result}});
  });
  return result;
}

}  // namespace uqa::trainer
