// Settings of an evaluation, and what follows from them alone: where it is written, whose history "shuffled" shows.
#include <algorithm>
#include <map>

#include "core/error.h"
#include "core/random.h"
#include "trainer/evaluate.h"
#include "trainer/prompt.h"

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
  UQA_CHECK(num_threads >= 0, ErrorCode::kConfig, "num_threads = {}, must be >= 0 (0: cores of the host / ranks on it); change --num_threads", num_threads);
}

fs::path evaluation_directory(const EvaluateConfig& config, const std::string& questions_digest) {
  const EvaluateConfig defaults;
  std::string name = config.prompt;
  if (config.prompt == "shuffled" && config.shuffle_seed != defaults.shuffle_seed) name += fmt::format(".seed{}", config.shuffle_seed);
  if (config.prompt == "text" && config.text_items != defaults.text_items) name += fmt::format(".items{}", config.text_items);
  if (config.split != defaults.split) name += "." + config.split;
  if (config.audit_options) name += ".audit";
  if (config.max_questions != defaults.max_questions) name += fmt::format(".max{}", config.max_questions);
  return fs::path(config.run) / "eval" / (name + "-" + questions_digest.substr(0, 8));
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
