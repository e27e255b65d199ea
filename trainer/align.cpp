#include "trainer/align.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <tuple>

#include "core/error.h"
#include "core/log.h"
#include "models/recompute.h"
#include "models/tensor_io.h"
#include "trainer/align_ask.h"
#include "trainer/align_parts.h"
#include "trainer/align_questions.h"
#include "trainer/align_users.h"
#include "trainer/device.h"

namespace uqa::trainer {
namespace {

constexpr double kHidden = 1e30;  // minus this, a score has no weight beside any real one

/// One forward pass.
struct MicroBatch {
  PackedPrompts packed;
  AlignUsers::Batch users;  ///< only for prompt "soft"
  Tensor gold_B;            ///< int64: index of the gold option
  Tensor reference_B;       ///< int64: prompt about the average user; only with config.calibrate
  Tensor same_group_BB;     ///< bool: of one sample, hence asked the same
  [[nodiscard]] std::int64_t num_questions() const { return gold_B.size(0); }
};

/// What the models compute with; users are moved where they are read.
MicroBatch moved_to(MicroBatch micro, const at::Device& device) {
  micro.packed = to_device(std::move(micro.packed), device);
  for (auto* tensor : {&micro.gold_B, &micro.reference_B, &micro.same_group_BB}) {
    if (tensor->defined()) *tensor = tensor->to(device);
  }
  return micro;
}

struct AlignBatch : TaskBatch {
  std::vector<MicroBatch> micro;
};

}  // namespace

struct AlignTask::Impl {
  AlignConfig config;
  Frozen frozen;
  bool soft = false;
  data::Dataset data;
  std::unique_ptr<AlignQuestions> questions;
  std::vector<std::int64_t> rows_of_group;  ///< LLM rows of each training group: its cost
  std::unique_ptr<AlignUsers> users;        ///< only for prompt "soft"
  std::string llm_digest;
  models::Llm llm{nullptr};
  Json split;  ///< how encoder and LLM lie on the ranks
  at::Device device{at::kCPU};
  double flops_per_token = 0, flops_per_interaction = 0;

  [[nodiscard]] bool bf16() const { return config.loop.train.dtype == "bf16"; }
  void save_model(const fs::path& directory, const std::string& stage, std::map<std::string, Tensor> tensors) const;

  void open() {
    UQA_CHECK(fs::is_directory(config.llm), ErrorCode::kConfig, "llm = {}, must be a Hugging Face directory; change --llm", config.llm);
    data = data::Dataset::open(config.data);
    questions = std::make_unique<AlignQuestions>(config, data);
    for (const auto& group : questions->train()) rows_of_group.push_back(questions->rows(group));
    llm_digest = digest_of_llm(config.llm);
  }

  /// Collective over both groups.
  void build_models(const models::TensorParallel& llm_tp, const models::TensorParallel& encoder_tp) {
    const auto seed = static_cast<std::uint64_t>(config.loop.train.seed);
    llm = models::load_llm(config.llm, {.dtype = bf16() ? at::kBFloat16 : at::kFloat,
                                        .trainable = !frozen.llm,
                                        .lora = {.rank = config.lora.rank, .alpha = config.lora.alpha},
                                        .seed = seed},
                           llm_tp);
    const auto longest = questions->chat_counts().longest_rows;
    UQA_CHECK(longest <= llm->config().max_positions, ErrorCode::kConfig,
              "a training text has {} rows with its soft token, the LLM takes {}; give a smaller --prompt.max_tokens or another --llm", longest, llm->config().max_positions);
    if (soft) {
      users = std::make_unique<AlignUsers>(config, frozen, data, *questions, llm->config().hidden, encoder_tp, device);
      split["encoder"] = describe_split(users->encoder_config().encoder, encoder_tp);
    }
    move_to(*llm, device);  // after the last collective: a device without room fails one rank alone
    split["llm"] = {{"tp", llm_tp.size()}, {"split", llm_tp.size() > 1}};
    double weights = 0, lora = 0;
    for (const auto& [name, shape] : llm->config().weight_shapes()) {
      if (shape.size() == 2 && name.starts_with("model.layers.")) weights += static_cast<double>(shape[0]) * static_cast<double>(shape[1]);
    }
    if (frozen.llm) {
      for (const auto& parameter : llm_parameters()) lora += elements_of(parameter);
    }
    flops_per_token = (frozen.llm ? 4.0 : 6.0) * weights + 6.0 * lora;
    if (soft && !frozen.encoder) {
      for (const auto& parameter : trained_of(*users->encoder())) {
        if (parameter.tensor.dim() == 2 && !parameter.name.starts_with("ebc.")) flops_per_interaction += 6.0 * elements_of(parameter);
      }
    }
  }

  /// Of the whole parameter.
  static double elements_of(const NamedParameter& parameter) {
    return static_cast<double>(c10::multiply_integers(models::global_shape_of(parameter.tensor, parameter.layout)));
  }
  [[nodiscard]] std::vector<NamedParameter> llm_parameters() const {
    std::vector<NamedParameter> parameters;
    for (const auto& [name, tensor] : llm->trainable_parameters()) {
      parameters.push_back({.name = "llm." + name, .tensor = tensor, .layout = models::layout_in(llm->trainable_layouts(), name)});
    }
    return parameters;
  }

  [[nodiscard]] MicroBatch make_micro(const std::vector<QuestionGroup>& groups, const Group& part) const {
    const auto members = members_of(groups, part);
    MicroBatch micro;
    std::vector<std::int64_t> gold;
    for (const auto q : members) gold.push_back(questions->encoded(q).gold);
    micro.gold_B = at::tensor(gold, at::kLong);
    auto packed = questions->packed(members);
    micro.packed = std::move(packed.prompts);
    if (config.calibrate) micro.reference_B = at::tensor(packed.reference_of, at::kLong);
    const auto size = static_cast<std::int64_t>(members.size());
    micro.same_group_BB = at::zeros({size, size}, at::kBool);
    std::int64_t begin = 0;
    for (auto g = part.begin; g < part.end; ++g) {
      const auto count = static_cast<std::int64_t>(groups[g].size());
      micro.same_group_BB.narrow(0, begin, count).narrow(1, begin, count).fill_(true);
      begin += count;
    }
    if (soft) micro.users = users->load(members, micro.packed.num_prompts - size);
    return micro;
  }

  /// Soft tokens of a batch's prompts; undefined for prompt "none".
  [[nodiscard]] Tensor soft_of(const MicroBatch& micro, const models::DropoutContext& context) {
    return soft ? users->soft_tokens(micro.users, context, bf16()) : Tensor();
  }

  /// Log-likelihood per token of the four options, calibrated if so configured, [B, G, 4]: G is one rule a trained form of answer,
  /// letter before text.
  [[nodiscard]] Tensor option_scores(const MicroBatch& micro, const Tensor& log_probs_N) const {
    const auto all_PG4 = (continuation_sums(micro.packed, log_probs_N) / micro.packed.continuation_tokens_C)
                             .view({micro.packed.num_prompts, -1, static_cast<std::int64_t>(kNumOptions)});
    const auto scores_BG4 = all_PG4.narrow(0, 0, micro.num_questions());
    return config.calibrate ? scores_BG4 - all_PG4.index_select(0, micro.reference_B) : scores_BG4;
  }

  /// Loss of each question, mean over the forms of answer. -> [B]
  [[nodiscard]] Tensor losses(const MicroBatch& micro, const Tensor& scores_BG4) const {
    const auto scaled_BG4 = scores_BG4 * config.choice_scale;
    const auto gold_BG1 = micro.gold_B.view({-1, 1, 1}).expand({-1, scores_BG4.size(1), 1});
    const auto choice_BG = -scaled_BG4.log_softmax(-1).gather(2, gold_BG1).squeeze(2);
    if (config.objective != "contrast") return choice_BG.mean(1);
    // [i, j]: how well user j's token fits user i's gold option, among the users who are asked the same.
    const auto fit_BBG = scaled_BG4.index_select(2, micro.gold_B).permute({2, 0, 1});
    const auto among = [&](const Tensor& keep_BB) { return fit_BBG.masked_fill(keep_BB.logical_not().unsqueeze(2), -kHidden).logsumexp(1); };
    const auto right_BB = micro.same_group_BB.logical_and(micro.gold_B.unsqueeze(1).eq(micro.gold_B.unsqueeze(0)));
    const auto contrast_BG = among(micro.same_group_BB) - among(right_BB);
    return (choice_BG + contrast_BG).mean(1) / 2;
  }
};

AlignTask::AlignTask(AlignConfig config, const comm::Mesh& mesh) : impl_(std::make_unique<Impl>()) {
  auto& s = *impl_;
  s.device = mesh.device();
  comm::run_agreed(mesh.world(), [&] {
    config.validate();
    s.frozen = parse_freeze(config.freeze);
    s.soft = config.prompt == "soft";
    s.config = std::move(config);
    s.open();
  });
  const auto llm_tp = models::tensor_parallel(mesh.tp(), s.config.loop.parallel.llm_degree(), "parallel.llm_tp");
  const auto encoder_tp = models::tensor_parallel(mesh.tp(), s.config.loop.parallel.encoder_degree(), "parallel.encoder_tp");
  comm::run_agreed(mesh.world(), [&] { s.build_models(llm_tp, encoder_tp); });
  if (!s.soft) return;
  const auto tokens_VL = s.llm->embed(at::arange(s.llm->config().vocab_size, at::TensorOptions(at::kLong).device(s.device))).detach().cpu().to(at::kFloat);
  s.users->prepare(tokens_VL, mesh.world());
}

AlignTask::~AlignTask() = default;

std::vector<NamedParameter> AlignTask::parameters() const {
  const auto& s = *impl_;
  std::vector<NamedParameter> parameters;
  const double other = s.config.other_lr > 0 ? s.config.other_lr / s.config.loop.optim.peak_lr : 1;
  const auto add = [&](std::vector<NamedParameter> some, double lr_scale) {
    for (auto& parameter : some) {
      parameter.lr_scale = lr_scale;
      parameters.push_back(std::move(parameter));
    }
  };
  if (s.soft) {
    add(trained_of(*s.users->encoder(), "encoder."), other);
    add(trained_of(s.users->adapter(), "adapter."), 1);
  }
  add(s.llm_parameters(), other);
  return parameters;
}

std::vector<models::Layered*> AlignTask::layered_models() const {
  auto& s = *impl_;
  std::vector<models::Layered*> models{s.llm.get()};
  if (s.soft) models.insert(models.begin(), &s.users->encoder()->layers());
  return models;
}

std::int64_t AlignTask::num_samples() const { return static_cast<std::int64_t>(impl_->questions->train().size()); }

std::int64_t AlignTask::cost(std::int64_t sample) const { return impl_->rows_of_group[static_cast<std::size_t>(sample)]; }

std::unique_ptr<TaskBatch> AlignTask::load(const std::vector<std::int64_t>& samples) const {
  const auto& s = *impl_;
  auto batch = std::make_unique<AlignBatch>();
  std::vector<std::int64_t> rows;
  std::vector<QuestionGroup> groups;
  for (const auto sample : samples) {
    rows.push_back(cost(sample));
    groups.push_back(s.questions->train()[static_cast<std::size_t>(sample)]);
  }
  for (const auto& part : group_by_rows(rows, s.config.micro_rows, s.config.loop.batch.micro_users)) {
    auto micro = s.make_micro(groups, part);
    batch->num_labels += s.questions->choice() ? micro.num_questions() : micro.packed.pair_tokens_N.size(0);
    batch->num_tokens += micro.packed.num_rows();
    if (s.soft) {
      for (const auto q : members_of(groups, part)) batch->num_interactions += s.users->spans()[q].end - s.users->spans()[q].begin;
    }
    batch->micro.push_back(std::move(micro));
  }
  batch->num_micro_batches = static_cast<std::int64_t>(batch->micro.size());
  return batch;
}

Tensor AlignTask::loss_sum(const TaskBatch& batch, std::int64_t micro_index, const models::DropoutContext& context) {
  auto& s = *impl_;
  const auto& parts = static_cast<const AlignBatch&>(batch).micro;
  if (micro_index >= static_cast<std::int64_t>(parts.size())) return at::zeros({}, at::kFloat);
  const auto micro = moved_to(parts[static_cast<std::size_t>(micro_index)], s.device);
  const models::RecomputeLayers recompute(s.config.loop.memory.recompute == "layers");
  const auto head_RH = run_prompts(*s.llm, micro.packed, s.soft_of(micro, context));
  const auto log_probs_N = token_log_probs(*s.llm, head_RH, micro.packed);
  return s.questions->choice() ? s.losses(micro, s.option_scores(micro, log_probs_N)).sum() : -log_probs_N.sum();
}

std::optional<Validation> AlignTask::validate(const comm::Mesh& mesh) {
  auto& s = *impl_;
  const auto& all = *s.questions;
  if (all.valid().empty()) return std::nullopt;
  constexpr double kGrid = 1 << 20;  // losses are summed as integers: the sum does not depend on the number of ranks
  enum { kQuestions, kLetter, kText, kLoss, kLabels, kNumSums };
  std::array<std::int64_t, kNumSums> sums{};
  comm::run_agreed(mesh.world(), [&] {
    const at::NoGradGuard no_grad;
    std::vector<std::int64_t> rows;
    for (const auto& group : all.valid()) rows.push_back(all.rows(group));
    const auto parts = group_by_rows(rows, s.config.micro_rows);
    for (std::size_t g = static_cast<std::size_t>(mesh.dp().rank()); g < parts.size(); g += static_cast<std::size_t>(mesh.dp().size())) {
      const auto micro = moved_to(s.make_micro(all.valid(), parts[g]), s.device);
      const auto head_RH = run_prompts(*s.llm, micro.packed, s.soft_of(micro, {}));
      const auto log_probs_N = token_log_probs(*s.llm, head_RH, micro.packed);
      Tensor losses = -log_probs_N;
      if (all.choice()) {
        const auto scores_BG4 = s.option_scores(micro, log_probs_N);
        losses = s.losses(micro, scores_BG4);
        const auto correct_BG = scores_BG4.argmax(2).eq(micro.gold_B.unsqueeze(1));
        if (all.learn_letter()) sums[kLetter] += correct_BG.select(1, 0).sum().item<std::int64_t>();
        if (all.learn_text()) sums[kText] += correct_BG.select(1, -1).sum().item<std::int64_t>();
      }
      sums[kQuestions] += micro.num_questions();
      sums[kLabels] += losses.size(0);
      sums[kLoss] += (losses.to(at::kDouble) * kGrid).round().to(at::kLong).sum().item<std::int64_t>();
    }
  });
  for (auto& sum : sums) sum = comm::all_reduce(sum, comm::ReduceOp::kSum, mesh.dp());
  const auto questions = static_cast<double>(sums[kQuestions]);
  const double loss = static_cast<double>(sums[kLoss]) / kGrid / static_cast<double>(sums[kLabels]);
  Validation validation;
  validation.values["valid_loss_nats"] = loss;
  validation.values["valid_questions"] = questions;
  if (all.choice() && all.learn_letter()) validation.values["valid_letter_accuracy"] = static_cast<double>(sums[kLetter]) / questions;
  if (all.choice() && all.learn_text()) validation.values["valid_text_accuracy"] = static_cast<double>(sums[kText]) / questions;
  if (all.choice()) {
    validation.metric = validation.values[all.learn_text() ? "valid_text_accuracy" : "valid_letter_accuracy"];
  } else {
    validation.metric = -loss;  // one continuation a question is scored: there is no accuracy to be had from it
  }
  return validation;
}

std::int64_t AlignTask::evaluate_every() const { return impl_->config.eval.every; }

std::map<std::string, double> AlignTask::evaluate(const comm::Mesh& mesh) {
  auto& s = *impl_;
  return ask_held_out_users(*s.llm, *s.questions, s.users.get(), {.micro_rows = s.config.micro_rows, .bf16 = s.bf16()}, mesh.dp());
}

double AlignTask::flops(std::int64_t num_interactions, std::int64_t num_tokens, std::int64_t /*num_labels*/) const {
  return impl_->flops_per_token * static_cast<double>(num_tokens) + impl_->flops_per_interaction * static_cast<double>(num_interactions);
}

std::map<std::string, double> AlignTask::take_figures() {
  if (!impl_->soft || !impl_->device.is_cpu()) return {};
  return {{"encoder_s", impl_->users->take_encoder_seconds()}};
}

void AlignTask::set_training(bool on) {
  auto& s = *impl_;
  s.llm->train(on);
  if (!s.soft) return;
  s.users->adapter().train(on && !s.frozen.adapter);
  s.users->encoder()->train(on && (!s.frozen.encoder || !s.config.encoder.eval_when_frozen));
}

/// `tensors`: the whole trained tensors of LLM and encoder.
void AlignTask::Impl::save_model(const fs::path& directory, const std::string& stage, std::map<std::string, Tensor> tensors) const {
  const auto& s = *this;
  Json json{{"format", "uqa.aligned"},
            {"version", 1},
            {"stage", stage},
            {"preset", s.config.preset},
            {"prompt", s.config.prompt},
            {"prompt_options", to_json(s.questions->prompts().options())},
            {"answer", s.config.answer},
            {"objective", s.config.objective},
            {"choice_scale", s.config.choice_scale},
            {"calibrate", s.config.calibrate},
            {"dtype", s.config.loop.train.dtype},
            {"data", fs::absolute(s.config.data).string()},
            {"data_digest", s.data.digest()},
            {"questions", fs::absolute(s.config.questions).string()},
            {"questions_digest", s.questions->digest()},
            {"llm", {{"path", fs::absolute(s.config.llm).string()},
                     {"digest", s.llm_digest},
                     {"trained", !s.frozen.llm},
                     {"lora_rank", s.config.lora.rank},
                     {"lora_alpha", s.config.lora.alpha}}}};
  if (s.soft) {
    for (const auto& [name, tensor] : users->adapter().stored()) tensors["adapter." + name] = tensor.detach();
    const at::NoGradGuard no_grad;
    if (const auto average_KL = users->average_user(); average_KL.defined()) tensors["average_user"] = average_KL;
    json["adapter"] = to_json(users->adapter().config());
    json["encoder"] = {{"path", fs::absolute(s.config.encoder_run).string()},
                       {"digest", users->encoder_digest()},
                       {"trained", !s.frozen.encoder},
                       {"model", to_json(users->encoder_config())}};
  }
  models::save_tensors(directory / "model.safetensors", tensors);
  write_file_atomic(directory / "model.json", json.dump(2) + "\n");
}

void AlignTask::save_model(const fs::path& directory, const comm::Mesh& mesh) const {
  std::map<std::string, Tensor> tensors;
  for (const auto& parameter : parameters()) {
    if (!parameter.name.starts_with("adapter.")) tensors[parameter.name] = whole_of(parameter, mesh);  // an adapter has a stored form of its own
  }
  comm::run_agreed(mesh.world(), [&] {
    if (mesh.world().rank() == 0) impl_->save_model(directory, stage(), std::move(tensors));
  });
}

Json AlignTask::describe() const {
  const auto& s = *impl_;
  const auto count = [](const std::vector<QuestionGroup>& groups) {
    return std::accumulate(groups.begin(), groups.end(), std::int64_t{0}, [](std::int64_t sum, const auto& group) { return sum + static_cast<std::int64_t>(group.size()); });
  };
  const auto num_train = count(s.questions->train());
  const auto rows = std::accumulate(s.rows_of_group.begin(), s.rows_of_group.end(), std::int64_t{0});
  std::map<std::string, std::int64_t> parameters;
  for (const auto& parameter : this->parameters()) {
    std::int64_t elements = 1;
    for (const auto extent : models::global_shape_of(parameter.tensor, parameter.layout)) elements *= extent;
    parameters[parameter.name.substr(0, parameter.name.find('.'))] += elements;
  }
  Json texts{{"cut", s.questions->chat_counts().cut}, {"answer_lost", s.questions->chat_counts().answer_lost}};
  return {{"data", {{"path", s.config.data}, {"digest", s.data.digest()}}},
          {"questions", {{"path", s.config.questions},
                         {"digest", s.questions->digest()},
                         {"train", num_train},
                         {"train_groups", num_samples()},
                         {"valid", count(s.questions->valid())},
                         {"texts", texts},
                         {"rows_per_question", static_cast<double>(rows) / static_cast<double>(num_train)},
                         {"longer_than_encoder_max_len", s.soft ? s.users->num_cut() : 0}}},
          {"trained_parameters", parameters},
          {"tensor_parallel", s.split},
          {"flops", {{"convention", "per LLM row 4 per layer weight (6 where it is trained) and 6 per LoRA weight; per interaction 6 per weight of a trained "
                                    "encoder; head and attention scores left out"},
                     {"per_token", s.flops_per_token},
                     {"per_interaction", s.flops_per_interaction}}}};
}

Deviations AlignTask::deviations() const {
  const auto& s = *impl_;
  return align_deviations(s.config, s.soft ? s.users->start() : "", s.questions->prompts().system());
}

std::map<std::string, std::int64_t> AlignTask::gradient_bytes() const {
  const auto& s = *impl_;
  const auto sum = [](const std::vector<Tensor>& parameters) {
    std::int64_t bytes = 0;
    for (const auto& parameter : parameters) bytes += parameter.grad().defined() ? static_cast<std::int64_t>(parameter.grad().nbytes()) : 0;
    return bytes;
  };
  std::map<std::string, std::int64_t> bytes{{"llm", sum(s.llm->parameters())}};
  if (s.soft) {
    bytes["encoder"] = sum(s.users->encoder()->parameters());
    bytes["adapter"] = sum(s.users->adapter().parameters());
  }
  return bytes;
}

}  // namespace uqa::trainer
