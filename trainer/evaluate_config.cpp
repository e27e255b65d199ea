// Settings of an evaluation, and what follows from them and the questions: where it is written, what is asked, whose history "shuffled" shows.
#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "core/error.h"
#include "core/random.h"
#include "trainer/evaluate_parts.h"

namespace uqa::trainer {

void EvaluateConfig::validate() const {
  static_cast<void>(prompt_of_name(prompt));
  UQA_CHECK(!run.empty(), ErrorCode::kConfig, "run is missing; give --run DIR");
  UQA_CHECK(!data.empty(), ErrorCode::kConfig, "data is missing; give --data DIR");
  UQA_CHECK(split == "test" || split == "train", ErrorCode::kConfig, "split = {}, must be test or train; change --split", split);
  UQA_CHECK(dtype.empty() || dtype == "float32" || dtype == "bf16", ErrorCode::kConfig, "dtype = {}, must be float32 or bf16; change --dtype", dtype);
  UQA_CHECK(batch_rows > 0, ErrorCode::kConfig, "batch_rows = {}, must be > 0; change --batch_rows", batch_rows);
  UQA_CHECK(text_items > 0, ErrorCode::kConfig, "text_items = {}, must be > 0; change --text_items", text_items);
  UQA_CHECK(max_questions >= 0, ErrorCode::kConfig, "max_questions = {}, must be >= 0 (0: all); change --max_questions", max_questions);
  UQA_CHECK(sample_seed >= 0, ErrorCode::kConfig, "sample_seed = {}, must be >= 0; change --sample_seed", sample_seed);
  generate_options().validate();
  UQA_CHECK(num_threads >= 0, ErrorCode::kConfig, "num_threads = {}, must be >= 0 (0: cores of the host / ranks on it); change --num_threads", num_threads);
  parallel().validate();
}

ParallelConfig EvaluateConfig::parallel() const {
  ParallelConfig parallel;
  parallel.tp = tp;
  parallel.llm_tp = llm_tp;
  parallel.encoder_tp = encoder_tp;
  return parallel;
}

models::GenerateOptions EvaluateConfig::generate_options() const {
  return {.max_new_tokens = max_new_tokens, .temperature = temperature, .seed = static_cast<std::uint64_t>(sample_seed), .stop_ids = {}};
}

fs::path evaluation_directory(const EvaluateConfig& config, const std::string& questions_digest) {
  const EvaluateConfig defaults;
  std::string name = config.prompt;
  if (config.prompt == "shuffled" && config.shuffle_seed != defaults.shuffle_seed) name += fmt::format(".seed{}", config.shuffle_seed);
  if (config.prompt == "text" && config.text_items != defaults.text_items) name += fmt::format(".items{}", config.text_items);
  if (config.max_new_tokens != defaults.max_new_tokens) name += fmt::format(".new{}", config.max_new_tokens);
  if (config.temperature != defaults.temperature) {
    name += fmt::format(".temperature{}", config.temperature);
    if (config.sample_seed != defaults.sample_seed) name += fmt::format(".sample{}", config.sample_seed);
  }
  if (config.split != defaults.split) name += "." + config.split;
  if (config.audit_options) name += ".audit";
  if (config.max_questions != defaults.max_questions) name += fmt::format(".max{}", config.max_questions);
  return fs::path(config.run) / "eval" / (name + "-" + questions_digest.substr(0, 8));
}

std::vector<data::Question> question_subset(std::vector<data::Question> questions, std::int64_t limit) {
  const auto size = static_cast<std::size_t>(limit);
  if (size == 0 || size >= questions.size()) return questions;
  const auto key = stream_key(1, "evaluate/subset");
  std::vector<std::size_t> order(questions.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::pair(mix_key(key, static_cast<std::uint64_t>(questions[a].id)), a) < std::pair(mix_key(key, static_cast<std::uint64_t>(questions[b].id)), b);
  });
  order.resize(size);
  std::sort(order.begin(), order.end());
  std::vector<data::Question> kept;
  for (const auto i : order) kept.push_back(std::move(questions[i]));
  return kept;
}

void check_context(const std::vector<data::Question>& questions, const std::vector<EncodedQuestion>& encoded, const EvaluateConfig& config,
                   std::int64_t text_items, std::int64_t max_positions) {
  std::int64_t longest = 0, rows = 0, id = 0;
  for (std::size_t q = 0; q < encoded.size(); ++q) {
    std::int64_t behind = config.max_new_tokens;
    for (const auto& option : encoded[q].options) behind = std::max(behind, static_cast<std::int64_t>(option.size()));
    const auto prompt = static_cast<std::int64_t>(encoded[q].prompt.size());
    if (prompt + behind - 1 <= rows) continue;  // the last token of an answer is not fed back
    longest = prompt;
    rows = prompt + behind - 1;
    id = questions[q].id;
  }
  if (rows <= max_positions) return;
  UQA_CHECK(config.prompt != "text", ErrorCode::kConfig,
            "text_items = {} makes a prompt of {} tokens (question {}), {} with what follows it, the LLM takes at most {}; lower --text_items, or align an LLM with more "
            "positions",
            text_items, longest, id, rows, max_positions);
  UQA_FAIL(ErrorCode::kConfig,
           "max_new_tokens = {} behind a prompt of {} tokens (question {}) makes {}, the LLM takes at most {}; lower --max_new_tokens, or align an LLM with more "
           "positions",
           config.max_new_tokens, longest, id, rows, max_positions);
}

std::vector<data::Span> shuffled_spans(const std::vector<data::Question>& questions, std::int64_t seed) {
  std::map<std::int64_t, std::vector<std::size_t>> by_user;
  for (std::size_t q = 0; q < questions.size(); ++q) by_user[questions[q].user].push_back(q);
  UQA_CHECK(by_user.size() >= 2, ErrorCode::kConfig, "prompt = shuffled, needs questions about at least 2 users and there are {}; choose another --prompt",
            by_user.size());
  std::vector<std::int64_t> users, others;
  for (const auto& [user, list] : by_user) users.push_back(user);
  others = users;
  // Sattolo's algorithm: one cycle through all users, so nobody stays in place.
  const auto key = stream_key(static_cast<std::uint64_t>(seed), "evaluate/shuffled");
  PhiloxStream random(key);
  for (std::size_t i = others.size() - 1; i > 0; --i) std::swap(others[i], others[random.below(i)]);
  std::map<std::int64_t, std::int64_t> other_of;
  for (std::size_t i = 0; i < users.size(); ++i) other_of[users[i]] = others[i];
  std::vector<data::Span> spans;
  for (const auto& question : questions) {
    const auto& candidates = by_user.at(other_of.at(question.user));
    PhiloxStream draw(mix_key(key, static_cast<std::uint64_t>(question.id)));
    const auto& source = questions[candidates[draw.below(candidates.size())]];
    spans.push_back({.user = source.user, .begin = source.begin, .end = source.end});
  }
  return spans;
}

}  // namespace uqa::trainer
