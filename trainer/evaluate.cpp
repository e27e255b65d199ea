#include "trainer/evaluate.h"

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <optional>

#include "comm/device.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/progress.h"
#include "core/signals.h"
#include "trainer/align.h"
#include "trainer/align_parts.h"
#include "trainer/evaluate_parts.h"
#include "trainer/option_audit.h"
#include "trainer/question_scores.h"
#include "trainer/run_info.h"

namespace uqa::trainer {
namespace {

/// Scores and answers of some questions, in their order: what one rank contributes. N is max_new_tokens.
struct Scores {
  std::vector<Tensor> option_nats{at::empty({0, kScores}, at::kFloat)};  ///< [n, 12]; zeros for free-form questions
  std::vector<std::int64_t> tokens;                                      ///< [n, N], -1 behind an answer that ended
};

/// Questions of `variants` answered by one model, variant by variant. Every member function is called by every rank in the same order.
class Evaluation {
 public:
  Evaluation(const std::vector<EvaluateConfig>& variants, const comm::Communicator& world)
      : variants_(variants),
        mesh_(world, 0, static_cast<int>(variants.front().parallel().tp_axis())),
        world_(mesh_.world()),
        config_(variants.front()),
        prompt_(Prompt::kSoft) {
    const auto parallel = config_.parallel();
    split_ = {.axis = mesh_.tp(),
              .llm = models::tensor_parallel(mesh_.tp(), parallel.llm_degree(), "parallel.llm_tp"),
              .encoder = models::tensor_parallel(mesh_.tp(), parallel.encoder_degree(), "parallel.encoder_tp"),
              .device = mesh_.device()};
  }

  std::vector<EvaluationResult> operator()() {
    comm::run_agreed(world_, [&] { open_data(); });
    comm::run_agreed(world_, [&] { open(); });
    std::vector<EvaluationResult> results;
    for (std::size_t v = 0; v < variants_.size(); ++v) results.push_back(answer(v));
    return results;
  }

 private:
  /// True where the soft token comes from a user's history.
  static bool has_state(Prompt prompt) { return prompt == Prompt::kSoft || prompt == Prompt::kShuffled; }

  EvaluationResult answer(std::size_t variant) {
    comm::run_agreed(world_, [&] { start(variant); });
    std::vector<std::vector<Prediction>> rotations;
    double seconds = 0;
    for (std::int64_t shift = 0; shift < (config_.audit_options ? static_cast<std::int64_t>(kNumOptions) : 1); ++shift) {
      comm::run_agreed(world_, [&] { encode(shift); });
      agree_on_unknown();
      compute_states();
      const auto begin = Clock::now();
      const Scores mine = score_share();
      const auto nats_MS = comm::all_gather(at::cat(mine.option_nats, 0), mesh_.dp());
      const auto num_mine = static_cast<std::int64_t>(mine.tokens.size()) / config_.max_new_tokens;
      const auto tokens_MN = comm::all_gather(at::tensor(mine.tokens, at::kLong).view({num_mine, config_.max_new_tokens}), mesh_.dp());
      if (shift == 0) {
        seconds = seconds_since(begin);
        num_scored_ = nats_MS.size(0);
      }
      comm::run_agreed(world_, [&] {
        const auto all = responses(nats_MS, tokens_MN);
        if (shift == 0) count_tokens(all);
        rotations.push_back(judge_all(all));
      });
    }
    EvaluationResult result;
    comm::run_agreed(world_, [&] {
      result = summarise(rotations.front(), seconds);
      if (config_.audit_options) result.details["option_audit"] = to_json(audit_options(rotations));
      if (world_.rank() != 0) return;
      if (cache_) cache_->save();
      write(rotations.front(), result, variant);
    });
    return result;
  }

  /// Whether each variant can be answered, as far as that is known without the model.
  void open_data() {
    for (const auto& variant : variants_) check_variant(variant);
    prompt_ = prompt_of_name(config_.prompt);
    data_ = data::Dataset::open(config_.data);
    UQA_CHECK(prompt_ != Prompt::kText || !data_.items().titles.empty(), ErrorCode::kConfig,
              "prompt = text with text_items = {}, needs item titles and data set {} has none; import item metadata with titles, or choose another --prompt",
              config_.text_items, config_.data);
  }

  /// What all variants share.
  void open() {
    std::optional<at::ScalarType> dtype;
    if (!config_.dtype.empty()) dtype = config_.dtype == "bf16" ? at::kBFloat16 : at::kFloat;
    model_ = load_aligned(config_.run, dtype, split_);  // first: the ranks of a group go on together or not at all
    UQA_CHECK(!has_soft_row(prompt_) || model_.prompt == "soft", ErrorCode::kConfig,
              "prompt = {}, but run {} was aligned without a soft token; choose --prompt none or text, or another --run", config_.prompt, config_.run);
    const std::string questions_path = config_.questions.empty() ? model_.questions : config_.questions;
    set_ = data::read_questions(questions_path);
    UQA_CHECK(set_.data_digest.empty() || set_.data_digest == data_.digest(), ErrorCode::kConfig,
              "questions {} were built from another data set than {}; give the right --data or --questions", questions_path, config_.data);
    questions_ = config_.split == "test" ? std::move(set_.test) : std::move(set_.train);
    UQA_CHECK(!questions_.empty(), ErrorCode::kData, "questions {} hold no {} questions; build them again or change --split", questions_path, config_.split);
    stored_ = questions_ = question_subset(std::move(questions_), config_.max_questions);
    if (config_.audit_options) {
      for (const auto& question : stored_) static_cast<void>(data::with_rotated_options(question, 1, set_.language));  // refused before anything is answered
    }
    set_encoder(std::max_element(variants_.begin(), variants_.end(), [](const auto& x, const auto& y) { return x.text_items < y.text_items; })->text_items);
    generate_ = config_.generate_options();
    generate_.stop_ids = stop_tokens(*model_.llm, *encoder_);
    const auto text_items = encoder_->options().text_items;
    check_context(questions_, encoder_->encode_all(questions_, prompt_, &data_), config_, text_items, model_.llm->config().max_positions);
    letters_ = letter_tokens(*encoder_);
    has_reference_ = prompt_ == Prompt::kText || (has_state(prompt_) && model_.average_user_KL.defined());
    if (has_state(prompt_) && !has_reference_) {
      log::warn("evaluate", "run {} was aligned with a trained encoder and holds no average user: rule calibrated is left out", config_.run);
    }
    if (has_soft_row(prompt_)) data_ = select_features(model_.encoder_config, data_);
    if (config_.cache_responses) {
      cache_.emplace(responses_path());
      const std::string device = split_.device.is_cpu() ? "" : fmt::format("{} ", c10::DeviceTypeName(split_.device.type(), /*lower_case=*/true));  // rounds otherwise
      run_facts_ = device + fmt::format("{} {} {} {} {} {}|", hash_file(fs::path(config_.run) / "model.safetensors"), model_.info.at("llm").at("digest").dump(),
                               data_.digest(), config_.prompt, c10::toString(model_.llm->options().dtype), has_state(prompt_) ? model_.info.at("encoder").at("digest").dump() : "");
    }
    for (const auto& variant : variants_) {
      const auto path = variant.output.empty() ? evaluation_directory(variant, set_.digest) : fs::path(variant.output);
      if (world_.rank() != 0) continue;
      if (path.has_parent_path()) fs::create_directories(path.parent_path());
      outputs_.push_back(std::make_unique<OutputDir>(path, OutputDirOptions{.kind = "uqa.evaluation", .overwrite = config_.overwrite}));
    }
  }

  void check_variant(const EvaluateConfig& variant) const {
    variant.validate();
    auto same = variant;
    same.text_items = config_.text_items;
    same.shuffle_seed = config_.shuffle_seed;
    same.output = config_.output;
    UQA_CHECK(same == config_, ErrorCode::kInternal, "evaluations of one call may differ in text_items, shuffle_seed and output alone");
  }

  void set_encoder(std::int64_t text_items) {
    auto options = model_.prompt_options;
    options.text_items = text_items;
    encoder_ = std::make_unique<PromptEncoder>(model_.llm_directory, set_.language, options);
  }

  /// One variant's own part: its prompts' titles, and whose histories they show.
  void start(std::size_t variant) {
    config_ = variants_[variant];
    if (encoder_->options().text_items != config_.text_items) set_encoder(config_.text_items);
    states_ = {};
    spans_.clear();
    if (!has_state(prompt_)) return;
    const std::int64_t max_len = model_.encoder_config.max_len;
    spans_ = encoder_spans(questions_, max_len);
    if (prompt_ != Prompt::kShuffled) return;
    spans_ = shuffled_spans(questions_, config_.shuffle_seed);
    for (auto& span : spans_) span.begin = std::max(span.begin, span.end - max_len);
  }

  /// The questions with their options moved `shift` places, as tokens.
  void encode(std::int64_t shift) {
    for (std::size_t q = 0; q < questions_.size(); ++q) questions_[q] = data::with_rotated_options(stored_[q], shift, set_.language);
    encoded_ = encoder_->encode_all(questions_, prompt_, &data_);
    if (prompt_ == Prompt::kText) without_titles_ = encoder_->encode_all(questions_, Prompt::kNone, nullptr);
    known_.clear();
    keys_.clear();
    std::vector<std::size_t> unknown;
    for (std::size_t q = 0; q < questions_.size(); ++q) {
      if (cache_) keys_.push_back(key_of(q));
      const Response* found = cache_ ? cache_->find(keys_[q]) : nullptr;
      if (found != nullptr) {
        known_.emplace(q, *found);
      } else {
        unknown.push_back(q);
      }
    }
    if (!known_.empty()) log::info("evaluate", "{} of {} questions were answered before by this model", known_.size(), questions_.size());
    by_text_ = groups_by_text(questions_, unknown);
  }

  /// What question `q`'s scores depend on beside the run.
  [[nodiscard]] ResponseKey key_of(std::size_t q) const {
    std::string facts = run_facts_;
    const auto add = [&](const std::vector<std::int64_t>& tokens) { facts += fmt::format("{}|", fmt::join(tokens, " ")); };
    add(encoded_[q].prompt);
    for (const auto& option : encoded_[q].options) add(option);
    if (!without_titles_.empty()) add(without_titles_[q].prompt);
    if (has_state(prompt_)) facts += fmt::format("{} {} {}", spans_[q].user, spans_[q].begin, spans_[q].end);
    if (config_.max_new_tokens > 1) facts += fmt::format("|{} tokens", config_.max_new_tokens);
    if (config_.temperature > 0) facts += fmt::format("|temperature {} seed {} id {}", config_.temperature, config_.sample_seed, questions_[q].id);
    return ResponseKey::of(std::as_bytes(std::span(facts)));
  }

  /// All ranks read the same file of responses; one that saw another would leave the others waiting.
  void agree_on_unknown() const {
    const auto mine = static_cast<std::int64_t>(questions_.size() - known_.size());
    const auto most = comm::all_reduce(mine, comm::ReduceOp::kMax, world_), least = comm::all_reduce(mine, comm::ReduceOp::kMin, world_);
    comm::agree_or_throw(world_, most == least, ErrorCode::kData,
                         fmt::format("between {} and {} questions are new to the ranks: they read different {}; wait until no other evaluation writes it", least, most,
                                     responses_path().string()));
  }
  [[nodiscard]] fs::path responses_path() const { return fs::path(config_.run) / "eval" / "responses.bin"; }

  /// Every question's response, in file order: the new ones, whose rows come in the order of by_text_, and those known before.
  [[nodiscard]] std::vector<Response> responses(const Tensor& nats_MS, const Tensor& tokens_MN) {
    const auto scored = members_of(by_text_, {0, by_text_.size()});
    UQA_CHECK(nats_MS.size(0) == static_cast<std::int64_t>(scored.size()) && tokens_MN.size(0) == nats_MS.size(0), ErrorCode::kInternal,
              "{} of {} questions were scored", nats_MS.size(0), scored.size());
    std::vector<Response> all(questions_.size());
    const auto nats_rows = nats_MS.contiguous(), token_rows = tokens_MN.contiguous();
    for (std::size_t i = 0; i < scored.size(); ++i) {
      auto& response = all[scored[i]];
      std::copy_n(nats_rows.const_data_ptr<float>() + static_cast<std::int64_t>(i) * kScores, kScores, response.option_nats.begin());
      const auto* tokens = token_rows.const_data_ptr<std::int64_t>() + static_cast<std::int64_t>(i) * config_.max_new_tokens;
      response.tokens.assign(tokens, std::find(tokens, tokens + config_.max_new_tokens, -1));
      if (cache_) cache_->add(keys_[scored[i]], response);
    }
    for (const auto& [q, response] : known_) all[q] = response;
    return all;
  }

  /// States behind the soft tokens, once a variant, unless every question was answered before.
  void compute_states() {
    if (!has_state(prompt_) || by_text_.empty() || states_.rows_RH.defined()) return;
    states_ = compute_user_states(model_.encoder, data_, spans_, model_.adapter->view(), world_, split_.encoder);
  }

  [[nodiscard]] QuestionBatch batch_of(const std::vector<std::size_t>& members) const {
    const auto* reference = !has_reference_ ? nullptr : prompt_ == Prompt::kText ? &without_titles_ : &encoded_;
    return question_batch(questions_, encoded_, members, letters_, reference);
  }

  /// Batches are fixed by the questions and batch_rows; each rank takes a contiguous share of about equal cost.
  Scores score_share() {
    std::vector<std::int64_t> rows, costs;
    for (const auto& same_text : by_text_) {
      const auto generated = static_cast<std::int64_t>(same_text.size()) * (config_.max_new_tokens - 1);
      rows.push_back(num_rows(batch_of(same_text).prompts) + generated);
    }
    const auto groups = group_by_rows(rows, config_.batch_rows);
    for (const auto& group : groups) {
      costs.push_back(std::accumulate(rows.begin() + static_cast<std::ptrdiff_t>(group.begin), rows.begin() + static_cast<std::ptrdiff_t>(group.end),
                                      std::int64_t{0}));
    }
    std::size_t num_rounds = 0;
    const auto& dp = mesh_.dp();  // ranks that split a layer score the same batches
    for (int rank = 0; rank < dp.size(); ++rank) {
      const auto share = share_of(costs, rank, dp.size());
      num_rounds = std::max(num_rounds, share.end - share.begin);
    }
    const auto share = share_of(costs, dp.rank(), dp.size());
    Progress progress("evaluate " + config_.prompt, static_cast<std::int64_t>(questions_.size() - known_.size()), "questions", world_.rank() == 0);
    Scores scores;
    for (std::size_t round = 0; round < num_rounds; ++round) {
      std::int64_t done = 0;
      comm::run_agreed(world_, [&] {
        const std::size_t g = share.begin + round;
        if (g >= share.end) return;
        const auto members = members_of(by_text_, groups[g]);
        score(members, scores);
        done = static_cast<std::int64_t>(members.size());
      });
      progress.advance(comm::all_reduce(done, comm::ReduceOp::kSum, dp));
      const auto stop = comm::all_reduce(static_cast<std::int64_t>(stop_requested() ? 1 : 0), comm::ReduceOp::kMax, world_);
      comm::agree_or_throw(world_, stop == 0, ErrorCode::kRequeue, "evaluation stopped on request; run the same command again");
    }
    progress.finish();
    return scores;
  }

  /// Soft tokens of the members' prompts and of the references behind them; undefined for a prompt without soft rows.
  [[nodiscard]] Tensor soft_tokens_of(const std::vector<std::size_t>& members, std::int64_t num_prompts) {
    if (!has_soft_row(prompt_)) return {};
    if (prompt_ == Prompt::kZero) return at::zeros({num_prompts * model_.prompt_options.soft_tokens, model_.llm->config().hidden}, at::TensorOptions(at::kFloat).device(split_.device));
    std::vector<std::int64_t> indices;
    for (const auto q : members) indices.push_back(static_cast<std::int64_t>(q));
    const auto [states_TH, layout] = states_.select(indices, split_.device);
    const auto soft_SL = model_.adapter->forward(states_TH, layout).flatten(0, 1);
    const auto references = num_prompts - static_cast<std::int64_t>(members.size());
    return references == 0 ? soft_SL : at::cat({soft_SL, model_.average_user_KL.repeat({references, 1})});
  }

  void score(const std::vector<std::size_t>& members, Scores& scores) {
    const at::NoGradGuard no_grad;
    const auto batch = batch_of(members);
    const auto scored = score_questions(*model_.llm, batch, soft_tokens_of(members, static_cast<std::int64_t>(batch.prompts.size())), generate_);
    scores.option_nats.push_back(scored.option_nats_BS);
    for (const auto& answer : scored.answers) {
      scores.tokens.insert(scores.tokens.end(), answer.begin(), answer.end());
      scores.tokens.insert(scores.tokens.end(), static_cast<std::size_t>(config_.max_new_tokens) - answer.size(), -1);
    }
  }

  [[nodiscard]] std::vector<Prediction> judge_all(const std::vector<Response>& responses) const {
    std::vector<Prediction> predictions;
    const bool calibrated = has_reference_ || !has_state(prompt_);
    for (std::size_t q = 0; q < questions_.size(); ++q) {
      predictions.push_back(prediction_of(questions_[q], encoded_[q], responses[q], encoder_->tokenizer(), generate_.stop_ids, calibrated));
    }
    return predictions;
  }

  void count_tokens(const std::vector<Response>& responses) {
    num_tokens_ = num_cut_ = 0;
    for (const auto& response : responses) {
      num_tokens_ += static_cast<std::int64_t>(response.tokens.size());
      num_cut_ += std::ranges::find(generate_.stop_ids, response.tokens.back()) == generate_.stop_ids.end() ? 1 : 0;
    }
  }

  [[nodiscard]] EvaluationResult summarise(const std::vector<Prediction>& predictions, double seconds) const {
    std::int64_t tokens = 0;
    for (const auto& prediction : predictions) tokens += prediction.input_tokens;
    const auto count = static_cast<double>(predictions.size());
    EvaluationResult result{.prompt = config_.prompt,
                            .questions_digest = set_.digest,
                            .rules = count_correct(predictions),
                            .input_tokens_per_question = static_cast<double>(tokens) / count,
                            .questions_per_s = static_cast<double>(num_scored_) / std::max(seconds, 1e-9),
                            .details = {}};
    result.details = {{"questions", predictions.size()},
                      {"split", config_.split},
                      {"run", fs::absolute(config_.run).string()},
                      {"data_digest", data_.digest()},
                      {"dtype", model_.llm->options().dtype == at::kBFloat16 ? "bf16" : "float32"},
                      {"batch_rows", config_.batch_rows},
                      {"shuffle_seed", config_.shuffle_seed},
                      {"text_items", config_.text_items},
                      {"max_questions", config_.max_questions},
                      {"max_new_tokens", config_.max_new_tokens},
                      {"temperature", config_.temperature},
                      {"sample_seed", config_.sample_seed},
                      {"prompt_options", to_json(encoder_->options())},
                      {"llm_digest", model_.info.at("llm").at("digest")},
                      {"aligned_prompt", model_.prompt},
                      {"answer", model_.info.at("answer")},
                      {"scored", num_scored_},
                      {"ranks", world_.size()},
                      {"device", comm::describe_device(world_)},
                      {"llm_tp", split_.llm.size()},
                      {"encoder_tp", split_.encoder.size()},
                      {"seconds", seconds}};
    if (config_.max_new_tokens > 1) {
      result.details["output_tokens_per_question"] = static_cast<double>(num_tokens_) / count;
      result.details["answers_cut"] = num_cut_;
    }
    if (prompt_ == Prompt::kText) {
      double titles = 0;
      for (const auto& question : questions_) titles += static_cast<double>(std::min(config_.text_items, question.end - question.begin));
      result.details["titles_per_question"] = titles / count;
    }
    if (set_.manifest.contains("prior_only")) result.details["prior_only"] = set_.manifest.at("prior_only");
    return result;
  }

  void write(const std::vector<Prediction>& predictions, const EvaluationResult& result, std::size_t variant) {
    auto& output = *outputs_.at(variant);
    std::string lines;
    for (const auto& prediction : predictions) lines += to_json(prediction).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    write_file_atomic(output.path() / "predictions.jsonl", lines);
    write_file_atomic(output.path() / "result.json", to_json(result).dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    output.commit();
    const auto path = config_.output.empty() ? evaluation_directory(config_, set_.digest) : fs::path(config_.output);
    log::info("evaluate", "{} questions answered with prompt {}: {}", predictions.size(), config_.prompt, path.string());
  }

  const std::vector<EvaluateConfig>& variants_;
  comm::Mesh mesh_;
  const comm::Communicator& world_;
  AlignedSplit split_;
  EvaluateConfig config_;  ///< the variant that is answered
  Prompt prompt_;
  models::GenerateOptions generate_;
  AlignedModel model_;
  data::Dataset data_;
  data::QuestionSet set_;
  std::vector<data::Question> stored_, questions_;  ///< as stored; with their options as they are shown
  std::vector<QuestionGroup> by_text_;  ///< of the questions_ to score
  std::unique_ptr<PromptEncoder> encoder_;
  LetterTokens letters_;
  std::vector<EncodedQuestion> encoded_, without_titles_;  ///< the latter for Prompt::kText
  std::vector<data::Span> spans_;                         ///< histories behind the soft tokens of questions_
  std::string run_facts_;                                 ///< what all scores depend on
  std::optional<ResponseCache> cache_;
  std::vector<ResponseKey> keys_;                         ///< of questions_; only with a cache
  std::map<std::size_t, Response> known_;                 ///< answered before; by_text_ holds the others
  std::int64_t num_scored_ = 0, num_tokens_ = 0, num_cut_ = 0;  ///< questions scored; tokens generated; answers without an end
  bool has_reference_ = false;                            ///< the same prompt about nobody is scored beside each
  UserStates states_;  ///< of questions_
  std::vector<std::unique_ptr<OutputDir>> outputs_;  ///< of the variants; rank 0 alone
};

}  // namespace

std::vector<EvaluationResult> run_evaluations(const std::vector<EvaluateConfig>& variants, const comm::Communicator& world) {
  UQA_CHECK(!variants.empty(), ErrorCode::kInternal, "run_evaluations: nothing to evaluate");
  variants.front().validate();
  set_num_threads(variants.front().num_threads, world);
  return Evaluation(variants, world)();
}

EvaluationResult run_evaluate(const EvaluateConfig& config, const comm::Communicator& world) { return run_evaluations({config}, world).front(); }

}  // namespace uqa::trainer
