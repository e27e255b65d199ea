#include "trainer/evaluate.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <numeric>
#include <optional>

#include "core/clock.h"
#include "core/error.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/progress.h"
#include "core/random.h"
#include "core/signals.h"
#include "trainer/align.h"
#include "trainer/align_parts.h"
#include "trainer/option_audit.h"
#include "trainer/response_cache.h"
#include "trainer/run_info.h"
#include "trainer/scoring.h"

namespace uqa::trainer {
namespace {

constexpr std::int64_t kScores = 3 * static_cast<std::int64_t>(kNumOptions);  // letters, texts, calibrated texts

/// Scores of some questions, in their order: what one rank contributes.
struct Scores {
  std::vector<Tensor> option_nats{at::empty({0, kScores}, at::kFloat)};  ///< [n, 12]; zeros for free-form questions
  std::vector<Tensor> greedy{at::empty({0}, at::kLong)};                 ///< [n]
};

class Evaluation {
 public:
  Evaluation(const EvaluateConfig& config, const comm::Communicator& world) : config_(config), world_(world), prompt_(Prompt::kSoft) {}

  EvaluationResult operator()() {
    comm::run_agreed(world_, [&] { open(); });
    compute_states();
    std::vector<std::vector<Prediction>> rotations;
    double seconds = 0;
    for (std::int64_t shift = 0; shift < (config_.audit_options ? static_cast<std::int64_t>(kNumOptions) : 1); ++shift) {
      comm::run_agreed(world_, [&] { encode(shift); });
      const auto begin = Clock::now();
      const Scores mine = score_share();
      const auto nats_MS = comm::all_gather(at::cat(mine.option_nats, 0), world_);
      const auto greedy_M = comm::all_gather(at::cat(mine.greedy, 0), world_);
      if (shift == 0) {
        seconds = std::chrono::duration<double>(Clock::now() - begin).count();
        num_scored_ = nats_MS.size(0);
      }
      comm::run_agreed(world_, [&] { rotations.push_back(judge_all(responses(nats_MS, greedy_M))); });
    }
    EvaluationResult result;
    comm::run_agreed(world_, [&] {
      result = summarise(rotations.front(), seconds);
      if (config_.audit_options) result.details["option_audit"] = to_json(audit_options(rotations));
      if (!output_) return;
      if (cache_) cache_->save();
      write(rotations.front(), result);
    });
    return result;
  }

 private:
  /// True where the soft token comes from a user's history.
  static bool has_state(Prompt prompt) { return prompt == Prompt::kSoft || prompt == Prompt::kShuffled; }

  void open() {
    config_.validate();
    prompt_ = prompt_of_name(config_.prompt);
    std::optional<at::ScalarType> dtype;
    if (!config_.dtype.empty()) dtype = config_.dtype == "bf16" ? at::kBFloat16 : at::kFloat;
    model_ = load_aligned(config_.run, dtype);
    UQA_CHECK(!has_soft_row(prompt_) || model_.prompt == "soft", ErrorCode::kConfig,
              "prompt = {}, but run {} was aligned without a soft token; choose --prompt none or text, or another --run", config_.prompt, config_.run);
    data_ = data::Dataset::open(config_.data);
    const std::string questions_path = config_.questions.empty() ? model_.questions : config_.questions;
    set_ = data::read_questions(questions_path);
    UQA_CHECK(set_.data_digest.empty() || set_.data_digest == data_.digest(), ErrorCode::kConfig,
              "questions {} were built from another data set than {}; give the right --data or --questions", questions_path, config_.data);
    questions_ = config_.split == "test" ? std::move(set_.test) : std::move(set_.train);
    UQA_CHECK(!questions_.empty(), ErrorCode::kData, "questions {} hold no {} questions; build them again or change --split", questions_path, config_.split);
    take_subset();
    stored_ = questions_;
    auto options = model_.prompt_options;
    options.text_items = config_.text_items;
    encoder_ = std::make_unique<PromptEncoder>(model_.llm_directory, set_.language, options);
    letters_ = letter_tokens(*encoder_);
    has_reference_ = prompt_ == Prompt::kText || (has_state(prompt_) && model_.average_user_KL.defined());
    if (has_state(prompt_) && !has_reference_) {
      log::warn("evaluate", "run {} was aligned with a trained encoder and holds no average user: rule calibrated is left out", config_.run);
    }
    if (has_soft_row(prompt_)) data_ = select_features(model_.encoder_config, data_);
    if (config_.cache_responses) {
      cache_.emplace(fs::path(config_.run) / "eval" / "responses.bin");
      run_facts_ = fmt::format("{} {} {} {} {} {}|", hash_file(fs::path(config_.run) / "model.safetensors"), model_.info.at("llm").at("digest").dump(),
                               data_.digest(), config_.prompt, c10::toString(model_.llm->options().dtype), has_state(prompt_) ? model_.info.at("encoder").at("digest").dump() : "");
    }
    path_ = config_.output.empty() ? evaluation_directory(config_, set_.digest) : fs::path(config_.output);
    if (world_.rank() == 0) {
      if (path_.has_parent_path()) fs::create_directories(path_.parent_path());
      output_.emplace(path_, OutputDirOptions{.kind = "uqa.evaluation", .overwrite = config_.overwrite});
    }
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
    return ResponseKey::of(std::as_bytes(std::span(facts)));
  }

  /// Every question's response, in file order: the new ones, whose rows come in the order of by_text_, and those known before.
  [[nodiscard]] std::vector<Response> responses(const Tensor& nats_MS, const Tensor& greedy_M) {
    const auto scored = members_of(by_text_, {0, by_text_.size()});
    UQA_CHECK(nats_MS.size(0) == static_cast<std::int64_t>(scored.size()) && greedy_M.size(0) == nats_MS.size(0), ErrorCode::kInternal,
              "{} of {} questions were scored", nats_MS.size(0), scored.size());
    std::vector<Response> all(questions_.size());
    const auto nats_rows = nats_MS.contiguous();
    for (std::size_t i = 0; i < scored.size(); ++i) {
      auto& response = all[scored[i]];
      std::copy_n(nats_rows.const_data_ptr<float>() + static_cast<std::int64_t>(i) * kScores, kScores, response.option_nats.begin());
      response.greedy_token = greedy_M[static_cast<std::int64_t>(i)].item<std::int64_t>();
      if (cache_) cache_->add(keys_[scored[i]], response);
    }
    for (const auto& [q, response] : known_) all[q] = response;
    return all;
  }

  /// A random subset that depends on the ids alone, in the order of the file.
  void take_subset() {
    const auto limit = static_cast<std::size_t>(config_.max_questions);
    if (limit == 0 || limit >= questions_.size()) return;
    const auto key = stream_key(1, "evaluate/subset");
    std::vector<std::size_t> order(questions_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return std::pair(mix_key(key, static_cast<std::uint64_t>(questions_[a].id)), a) < std::pair(mix_key(key, static_cast<std::uint64_t>(questions_[b].id)), b);
    });
    order.resize(limit);
    std::sort(order.begin(), order.end());
    std::vector<data::Question> kept;
    for (const auto i : order) kept.push_back(std::move(questions_[i]));
    questions_ = std::move(kept);
  }

  void compute_states() {
    if (!has_state(prompt_)) return;
    const std::int64_t max_len = model_.encoder_config.max_len;
    comm::run_agreed(world_, [&] {
      spans_ = encoder_spans(questions_, max_len);
      if (prompt_ != Prompt::kShuffled) return;
      spans_ = shuffled_spans(questions_, config_.shuffle_seed);
      for (auto& span : spans_) span.begin = std::max(span.begin, span.end - max_len);
    });
    states_ = compute_user_states(model_.encoder, data_, spans_, model_.adapter->view(), world_);
  }

  /// The prompts of some questions and, behind them, the same about nobody; `reference_of` is empty where there is none.
  struct Batch {
    std::vector<ScoredPrompt> prompts;
    std::vector<std::int64_t> reference_of;
  };

  [[nodiscard]] Batch batch_of(const std::vector<std::size_t>& members) const {
    Batch batch;
    for (const auto q : members) {
      auto& prompt = batch.prompts.emplace_back(ScoredPrompt{.prompt = &encoded_[q], .continuations = {}});
      if (encoded_[q].gold < 0) continue;
      for (const auto& letter : letters_) prompt.continuations.emplace_back(letter);
      for (const auto& option : encoded_[q].options) prompt.continuations.emplace_back(option);
    }
    if (has_reference_) batch.reference_of = add_references(batch.prompts, questions_, members, prompt_ == Prompt::kText ? without_titles_ : encoded_);
    return batch;
  }

  /// Batches are fixed by the questions and batch_rows; each rank takes a contiguous share of about equal cost.
  Scores score_share() {
    std::vector<std::int64_t> rows, costs;
    for (const auto& same_text : by_text_) rows.push_back(num_rows(batch_of(same_text).prompts));
    const auto groups = group_by_rows(rows, config_.batch_rows);
    for (const auto& group : groups) {
      costs.push_back(std::accumulate(rows.begin() + static_cast<std::ptrdiff_t>(group.begin), rows.begin() + static_cast<std::ptrdiff_t>(group.end),
                                      std::int64_t{0}));
    }
    std::size_t num_rounds = 0;
    for (int rank = 0; rank < world_.size(); ++rank) {
      const auto share = share_of(costs, rank, world_.size());
      num_rounds = std::max(num_rounds, share.end - share.begin);
    }
    const auto share = share_of(costs, world_.rank(), world_.size());
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
      progress.advance(comm::all_reduce(done, comm::ReduceOp::kSum, world_));
      const auto stop = comm::all_reduce(static_cast<std::int64_t>(stop_requested() ? 1 : 0), comm::ReduceOp::kMax, world_);
      comm::agree_or_throw(world_, stop == 0, ErrorCode::kRequeue, "evaluation stopped on request; run the same command again");
    }
    progress.finish();
    return scores;
  }

  /// Soft tokens of the members' prompts and of the references behind them; undefined for a prompt without soft rows.
  [[nodiscard]] Tensor soft_tokens_of(const std::vector<std::size_t>& members, std::int64_t num_prompts) {
    if (!has_soft_row(prompt_)) return {};
    if (prompt_ == Prompt::kZero) return at::zeros({num_prompts * model_.prompt_options.soft_tokens, model_.llm->config().hidden}, at::kFloat);
    std::vector<std::int64_t> indices;
    for (const auto q : members) indices.push_back(static_cast<std::int64_t>(q));
    const auto [states_TH, layout] = states_.select(indices);
    const auto soft_SL = model_.adapter->forward(states_TH, layout).flatten(0, 1);
    const auto references = num_prompts - static_cast<std::int64_t>(members.size());
    return references == 0 ? soft_SL : at::cat({soft_SL, model_.average_user_KL.repeat({references, 1})});
  }

  void score(const std::vector<std::size_t>& members, Scores& scores) {
    const at::NoGradGuard no_grad;
    const auto size = static_cast<std::int64_t>(members.size());
    const auto batch = batch_of(members);
    const auto packed = pack_prompts(batch.prompts);
    const auto head_RH = run_prompts(*model_.llm, packed, soft_tokens_of(members, packed.num_prompts));
    scores.greedy.push_back(greedy_tokens(*model_.llm, head_RH, packed).narrow(0, 0, size));
    auto nats_BS = at::zeros({size, kScores}, at::kFloat);
    std::vector<std::int64_t> with_options, references;  // of the prompts that have options: which question, whose reference
    std::vector<std::int64_t> place(batch.prompts.size(), -1);
    std::int64_t count = 0;
    for (std::size_t p = 0; p < batch.prompts.size(); ++p) {
      if (!batch.prompts[p].continuations.empty()) place[p] = count++;
    }
    for (std::size_t i = 0; i < members.size(); ++i) {
      if (place[i] < 0) continue;
      with_options.push_back(static_cast<std::int64_t>(i));
      if (has_reference_) references.push_back(place[static_cast<std::size_t>(batch.reference_of[i])]);
    }
    if (!with_options.empty()) {
      const auto sums_C = continuation_sums(packed, token_log_probs(*model_.llm, head_RH, packed));
      const auto means_P24 = (sums_C / packed.continuation_tokens_C).view({-1, 2, static_cast<std::int64_t>(kNumOptions)});
      const auto means_M24 = means_P24.narrow(0, 0, static_cast<std::int64_t>(with_options.size()));
      const auto text_M4 = means_M24.select(1, 1);
      const auto calibrated_M4 = has_reference_ ? text_M4 - means_P24.select(1, 1).index_select(0, at::tensor(references, at::kLong)) : text_M4;
      const auto nats_MS = at::cat({means_M24.select(1, 0).log_softmax(1), text_M4, calibrated_M4}, 1);
      UQA_CHECK(nats_MS.isfinite().all().item<bool>(), ErrorCode::kNumeric,
                "an option's log-likelihood is not finite; align with a smaller optim.peak_lr, or evaluate with --dtype float32");
      nats_BS.index_copy_(0, at::tensor(with_options, at::kLong), nats_MS);
    }
    scores.option_nats.push_back(nats_BS);
  }

  [[nodiscard]] std::vector<Prediction> judge_all(const std::vector<Response>& responses) const {
    std::vector<Prediction> predictions;
    for (std::size_t q = 0; q < questions_.size(); ++q) {
      const auto& question = questions_[q];
      const auto& response = responses[q];
      Prediction prediction{.question = question.text,
                            .prediction = encoder_->tokenizer().decode({response.greedy_token}, /*skip_special=*/true),
                            .answer = question.answer,
                            .type = data::code_of(question.type),
                            .user = question.user,
                            .id = question.id,
                            .input_tokens = static_cast<std::int64_t>(encoded_[q].prompt.size()),
                            .letter_nats = {},
                            .text_nats = {},
                            .calibrated_nats = {},
                            .correct = {}};
      if (encoded_[q].gold >= 0) {
        const auto* row = response.option_nats.data();
        prediction.letter_nats.assign(row, row + kNumOptions);
        prediction.text_nats.assign(row + kNumOptions, row + 2 * kNumOptions);
        if (has_reference_ || !has_state(prompt_)) prediction.calibrated_nats.assign(row + 2 * kNumOptions, row + kScores);
      }
      judge(prediction, encoded_[q].gold);
      predictions.push_back(std::move(prediction));
    }
    return predictions;
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
                      {"prompt_options", to_json(encoder_->options())},
                      {"llm_digest", model_.info.at("llm").at("digest")},
                      {"aligned_prompt", model_.prompt},
                      {"answer", model_.info.at("answer")},
                      {"scored", num_scored_},
                      {"ranks", world_.size()},
                      {"seconds", seconds}};
    if (set_.manifest.contains("prior_only")) result.details["prior_only"] = set_.manifest.at("prior_only");
    return result;
  }

  void write(const std::vector<Prediction>& predictions, const EvaluationResult& result) {
    std::string lines;
    for (const auto& prediction : predictions) lines += to_json(prediction).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    write_file_atomic(output_->path() / "predictions.jsonl", lines);
    write_file_atomic(output_->path() / "result.json", to_json(result).dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    output_->commit();
    log::info("evaluate", "{} questions answered with prompt {}: {}", predictions.size(), config_.prompt, path_.string());
  }

  const EvaluateConfig& config_;
  const comm::Communicator& world_;
  Prompt prompt_;
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
  std::int64_t num_scored_ = 0;
  bool has_reference_ = false;                            ///< the same prompt about nobody is scored beside each
  UserStates states_;  ///< of questions_
  fs::path path_;
  std::optional<OutputDir> output_;
};

}  // namespace

EvaluationResult run_evaluate(const EvaluateConfig& config, const comm::Communicator& world) {
  config.validate();
  set_num_threads(config.num_threads, world);
  return Evaluation(config, world)();
}

}  // namespace uqa::trainer
