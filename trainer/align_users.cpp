#include "trainer/align_users.h"

#include <map>
#include <numeric>
#include <tuple>

#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "models/adapters/linear_adapter.h"
#include "trainer/autocast.h"
#include "trainer/device.h"
#include "trainer/word_start.h"

namespace uqa::trainer {
namespace {

constexpr std::int64_t kAverageHistories = 32;  // of an adapter that looks at every position

models::PackedLayout one_row_each(std::int64_t rows) {
  models::PackedLayout layout;
  layout.cu_seqlens.resize(static_cast<std::size_t>(rows) + 1);
  std::iota(layout.cu_seqlens.begin(), layout.cu_seqlens.end(), std::int64_t{0});
  layout.sample_ids.resize(static_cast<std::size_t>(rows));
  return layout;
}

}  // namespace

AlignUsers::AlignUsers(const AlignConfig& config, const Frozen& frozen, const data::Dataset& data, const AlignQuestions& questions, std::int64_t llm_hidden,
                       const models::TensorParallel& tp, const at::Device& device)
    : config_(config), frozen_(frozen), questions_(questions), tp_(tp), device_(device) {
  comm::run_agreed(tp.comm, [&] {
    encoder_ = load_user_model(config.encoder_run);
    data_ = select_features(encoder_.config, data);
    if (get_or<std::string>(encoder_.info, "data_digest", "", config.encoder_run) != data.digest()) {
      log::warn("align", "encoder run {} was trained on another data set than {}; item ids must mean the same in both", config.encoder_run, config.data);
    }
    encoder_digest_ = digest_of(*encoder_.model);
  });
  split_over(encoder_, tp);
  move_to(*encoder_.model, device_);
  spans_ = encoder_spans(questions.all(), encoder_.config.max_len, &num_cut_);
  if (num_cut_ > 0) log::info("align", "{} questions show more than max_len = {} interactions; the encoder sees the most recent", num_cut_, encoder_.config.max_len);
  adapter_ = models::make_adapter(config.adapter_config(encoder_.config.hidden, llm_hidden));
  adapter_->init_weights(static_cast<std::uint64_t>(config.loop.train.seed));
  for (const auto& parameter : adapter_->parameters()) parameter.requires_grad_(!frozen.adapter);
  for (const auto& parameter : encoder_.model->parameters()) parameter.requires_grad_(!frozen.encoder);
  const bool one_layer = dynamic_cast<const models::LinearAdapterImpl*>(adapter_.get()) != nullptr;
  start_ = config.adapter.init == "auto" ? (one_layer ? "whitened" : "plain") : config.adapter.init;
  if (config.adapter.from.empty()) return;
  start_ = "plain";
  start_from_given(*adapter_, read_given_adapter(config.adapter.from, adapter_->config()), encoder_digest_);
}

std::vector<std::int64_t> AlignUsers::training_questions() const {
  std::vector<std::int64_t> indices;
  for (const auto q : members_of(questions_.train(), {0, questions_.train().size()})) indices.push_back(static_cast<std::int64_t>(q));
  return indices;
}

void AlignUsers::prepare(const Tensor& tokens_VL, const comm::Communicator& world) {
  if (frozen_.encoder || start_ != "plain") prepare_states(tokens_VL, world);
  comm::run_agreed(world, [&] { move_to(*adapter_, device_); });
}

void AlignUsers::prepare_states(const Tensor& tokens_VL, const comm::Communicator& world) {
  // Only a frozen encoder's states are worth keeping: a trained one's serve the adapter's start.
  const auto memory = StateCacheConfig{.users = "memory", .max_bytes = config_.cache.max_bytes};
  auto states = cached_user_states(frozen_.encoder ? config_.cache : memory, encoder_digest_, encoder_.model, data_, spans_, adapter_->view(), world, tp_);
  comm::run_agreed(world, [&] {
    const auto training = training_questions();
    const auto [rows_TH, layout] = states.select(training);
    if (start_ != "plain") start_adapter(rows_TH, tokens_VL);
    if (!frozen_.encoder) return;
    if (adapter_->view() == models::StateView::kAll) {
      std::vector<std::int64_t> some;
      const auto count = std::min<std::int64_t>(kAverageHistories, static_cast<std::int64_t>(training.size()));
      for (std::int64_t i = 0; i < count; ++i) some.push_back(training[static_cast<std::size_t>(i * static_cast<std::int64_t>(training.size()) / count)]);
      std::tie(average_rows_RH_, average_layout_) = states.select(some);
    } else {
      average_rows_RH_ = rows_TH.to(at::kDouble).mean(0, /*keepdim=*/true).to(at::kFloat);
      average_layout_ = one_row_each(1);
    }
    average_rows_RH_ = average_rows_RH_.to(device_);
    states_ = std::move(states);
  });
}

void AlignUsers::start_adapter(const Tensor& states_SH, const Tensor& tokens_VL) {
  if (states_SH.size(0) < 2) return;
  auto& linear = dynamic_cast<models::LinearAdapterImpl&>(*adapter_);
  const auto seed = static_cast<std::uint64_t>(config_.loop.train.seed);
  const double rms = config_.adapter.init_scale * tokens_VL.square().mean().sqrt().item<double>();
  linear.init_whitened(seed, states_SH, rms);
  if (start_ != "words") return;
  WordQuestions words{.states_SH = linear.inputs_of(states_SH), .options = {}, .gold = {}};
  for (const auto q : training_questions()) {
    words.options.push_back(&questions_.encoded(static_cast<std::size_t>(q)).options);
    words.gold.push_back(questions_.encoded(static_cast<std::size_t>(q)).gold);
  }
  const auto start = fit_word_start(words, tokens_VL, seed);
  linear.start_from(start.weight_LH, states_SH, rms);
  log::info("align", "adapter starts from the words of {} answers; as a bilinear answerer it is right on {:.1f} % of them", words.gold.size(), 100 * start.accuracy);
}

AlignUsers::Batch AlignUsers::load(const std::vector<std::size_t>& questions, std::int64_t num_references) const {
  Batch batch{.questions = {}, .num_references = num_references, .histories = {}, .history_B = {}};
  for (const auto q : questions) batch.questions.push_back(static_cast<std::int64_t>(q));
  if (!runs_in_step()) return batch;
  // Questions about the same history share one run of the encoder, except where dropout gives each its own states.
  std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t>, std::int64_t> seen;
  std::vector<data::Span> distinct;
  std::vector<std::int64_t> history, sample_ids;
  for (const auto q : questions) {
    const auto& span = spans_[q];
    const auto [found, is_new] = seen.try_emplace({span.user, span.begin, span.end}, static_cast<std::int64_t>(distinct.size()));
    if (is_new || has_dropout()) {
      found->second = static_cast<std::int64_t>(distinct.size());
      distinct.push_back(span);
      sample_ids.push_back(static_cast<std::int64_t>(q));
    }
    history.push_back(found->second);
  }
  batch.histories = std::make_shared<const data::PackedBatch>(data::pack(data_, distinct, sample_ids, data::Targets::kNone));
  batch.history_B = at::tensor(history, at::kLong);
  return batch;
}

Tensor AlignUsers::soft_tokens(const Batch& batch, const models::DropoutContext& context, bool bf16) {
  Tensor soft_BKL;
  if (runs_in_step()) {
    const auto begin = Clock::now();
    const auto users = to_device(wrap_user_batch(batch.histories), device_);
    Tensor states_TH;
    {
      const c10::AutoGradMode grad(at::GradMode::is_enabled() && !frozen_.encoder);
      const AutocastBf16 autocast(bf16 && !frozen_.encoder, device_.type());  // as the states that are computed once: float32
      states_TH = encoder_.model->forward(users, context).to(at::kFloat);
    }
    encoder_seconds_ += seconds_since(begin);
    soft_BKL = adapter_->forward(states_TH, users.layout).index_select(0, batch.history_B.to(device_));
  } else {
    const auto [states_TH, layout] = states_.select(batch.questions, device_);
    soft_BKL = adapter_->forward(states_TH, layout);
  }
  auto soft_SL = soft_BKL.flatten(0, 1);
  if (batch.num_references == 0) return soft_SL;
  const auto average_KL = average_user();
  return at::cat({soft_SL, average_KL.repeat({batch.num_references, 1})});
}

Tensor AlignUsers::average_user() {
  if (!average_rows_RH_.defined()) return {};
  return adapter_->forward(average_rows_RH_, average_layout_).mean(0);
}

}  // namespace uqa::trainer
