#include "trainer/align_questions.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "core/random.h"

namespace uqa::trainer {
namespace {

/// Users whose questions validate: the share of users with the smallest keys.
std::set<std::int64_t> validation_users(const std::vector<data::Question>& questions, double fraction, std::int64_t seed) {
  std::set<std::int64_t> users;
  for (const auto& question : questions) users.insert(question.user);
  const auto key = stream_key(static_cast<std::uint64_t>(seed), "align/validation_users");
  std::vector<std::pair<std::uint64_t, std::int64_t>> order;
  for (const auto user : users) order.emplace_back(mix_key(key, static_cast<std::uint64_t>(user)), user);
  std::sort(order.begin(), order.end());
  const auto count = static_cast<std::size_t>(std::llround(fraction * static_cast<double>(order.size())));
  std::set<std::int64_t> chosen;
  for (std::size_t i = 0; i < count; ++i) chosen.insert(order[i].second);
  return chosen;
}

/// Whole groups in the order of their keys until `limit` questions (0: all) are together, the last one cut; back in their first order.
std::vector<QuestionGroup> subset(std::vector<QuestionGroup> groups, std::int64_t limit, std::uint64_t key) {
  if (limit == 0) return groups;
  std::vector<std::pair<std::uint64_t, std::size_t>> order;
  for (std::size_t g = 0; g < groups.size(); ++g) order.emplace_back(mix_key(key, groups[g].front()), g);
  std::sort(order.begin(), order.end());
  std::vector<std::size_t> chosen;
  auto left = static_cast<std::size_t>(limit);
  for (const auto& [_, g] : order) {
    if (left == 0) break;
    groups[g].resize(std::min(groups[g].size(), left));
    left -= groups[g].size();
    chosen.push_back(g);
  }
  std::sort(chosen.begin(), chosen.end());
  std::vector<QuestionGroup> kept;
  for (const auto g : chosen) kept.push_back(std::move(groups[g]));
  return kept;
}

}  // namespace

AlignQuestions::AlignQuestions(const AlignConfig& config, const data::Dataset& data)
    : choice_(config.objective == "choice" || config.objective == "contrast"),
      chat_(config.objective == "chat"),
      calibrate_(config.calibrate),
      learn_letter_(config.answer != "text"),
      learn_text_(config.answer != "letter"),
      set_(data::read_questions(config.questions)) {
  UQA_CHECK(set_.data_digest.empty() || set_.data_digest == data.digest(), ErrorCode::kConfig,
            "questions {} were built from another data set than {}; build them again or change --data", config.questions, config.data);
  UQA_CHECK(!set_.train.empty(), ErrorCode::kData, "questions {} hold no training questions; build them again", config.questions);
  tokenise(config, data);
  if (chat_) make_chats(config);
  split(config);
}

void AlignQuestions::tokenise(const AlignConfig& config, const data::Dataset& data) {
  prompts_ = std::make_unique<PromptEncoder>(config.llm, set_.language, config.prompt_options());
  letters_ = letter_tokens(*prompts_);
  encoded_ = prompts_->encode_all(set_.train, config.prompt == "soft" ? Prompt::kSoft : Prompt::kNone, &data);
  const auto end = prompts_->end_id();
  for (const auto& question : encoded_) {
    UQA_CHECK(!choice_ || question.gold >= 0, ErrorCode::kConfig,
              "objective = {}, needs questions with options and {} has free-form ones; give --objective lm", config.objective, config.questions);
    auto& letter = gold_letter_.emplace_back(question.answer);
    letter.push_back(end);
    auto& text = gold_text_.emplace_back(question.gold >= 0 ? question.options[static_cast<std::size_t>(question.gold)] : question.answer);
    if (text.back() != end) text.push_back(end);
  }
}

void AlignQuestions::make_chats(const AlignConfig& config) {
  const ChatExamples chats(*prompts_, {.max_tokens = config.prompt_format.max_tokens, .soft = config.prompt == "soft"});
  for (std::size_t q = 0; q < set_.train.size(); ++q) {
    const auto& question = set_.train[q];
    const auto& answer = learn_text_ && !question.options.empty() ? question.options[question.gold()] : question.answer;
    const auto& example = chats_.emplace_back(chats.make(question.id, question.text, answer));
    chat_counts_.cut += example.num_cut > 0 ? 1 : 0;
    chat_counts_.answer_lost += example.answer_lost ? 1 : 0;
    chat_counts_.longest_rows = std::max(chat_counts_.longest_rows, static_cast<std::int64_t>(example.ids.size()));
  }
  const auto limit = config.prompt_format.max_tokens;
  UQA_CHECK(chat_counts_.answer_lost == 0 || config.prompt_format.allow_lost_answers, ErrorCode::kConfig,
            "prompt.max_tokens = {}, cuts the answer off {} of {} questions; raise it, or learn from what is left with --prompt.allow_lost_answers", limit,
            chat_counts_.answer_lost, set_.train.size());
  if (chat_counts_.cut > 0) {
    log::warn("align", "prompt.max_tokens = {} cuts {} of {} texts, {} of them lose their answer", limit, chat_counts_.cut, set_.train.size(), chat_counts_.answer_lost);
  }
}

void AlignQuestions::split(const AlignConfig& config) {
  const auto held_out = validation_users(set_.train, config.validation_fraction, config.loop.train.seed);
  std::vector<std::size_t> train, valid;
  for (std::size_t i = 0; i < set_.train.size(); ++i) (held_out.contains(set_.train[i].user) ? valid : train).push_back(i);
  const auto key = stream_key(static_cast<std::uint64_t>(config.loop.train.seed), "align/subset");
  const auto grouped = [&](const std::vector<std::size_t>& indices) {
    if (config.group_by_text) return groups_by_text(set_.train, indices);
    std::vector<QuestionGroup> groups;
    for (const auto q : indices) groups.push_back({q});
    return groups;
  };
  train_ = subset(grouped(train), config.max_questions, key);
  if (config.validation_questions > 0) valid_ = subset(grouped(valid), config.validation_questions, key);
  if (config.eval.every > 0) {
    UQA_CHECK(!valid.empty(), ErrorCode::kConfig, "eval.every = {}, but validation_fraction = {} holds out no user of {}; raise --validation_fraction or give --eval.every 0",
              config.eval.every, config.validation_fraction, config.questions);
    asked_ = subset(grouped(valid), config.eval.max_questions, key);
  }
  UQA_CHECK(!train_.empty(), ErrorCode::kConfig, "no training question is left after validation_fraction = {}; lower it", config.validation_fraction);
}

ScoredPrompt AlignQuestions::scored(std::size_t q) const {
  ScoredPrompt prompt{.prompt = &encoded_[q], .continuations = {}};
  if (choice_) {
    if (learn_letter_) prompt.continuations.insert(prompt.continuations.end(), letters_.begin(), letters_.end());
    if (learn_text_) prompt.continuations.insert(prompt.continuations.end(), encoded_[q].options.begin(), encoded_[q].options.end());
  } else {
    if (learn_letter_) prompt.continuations.emplace_back(gold_letter_[q]);
    if (learn_text_) prompt.continuations.emplace_back(gold_text_[q]);
  }
  return prompt;
}

AlignQuestions::Packed AlignQuestions::packed(const std::vector<std::size_t>& questions) const {
  if (!chat_) {
    auto all = scored(questions);
    return {.prompts = pack_prompts(all.prompts), .reference_of = std::move(all.reference_of)};
  }
  std::vector<const ChatExample*> examples;
  for (const auto q : questions) examples.push_back(&chats_[q]);
  return {.prompts = pack_chats(examples), .reference_of = {}};
}

std::int64_t AlignQuestions::rows(const std::vector<std::size_t>& questions) const {
  if (!chat_) return num_rows(scored(questions).prompts);
  std::int64_t sum = 0;
  for (const auto q : questions) sum += static_cast<std::int64_t>(chats_[q].ids.size());
  return sum;
}

AlignQuestions::Scored AlignQuestions::scored(const std::vector<std::size_t>& questions) const {
  Scored all;
  for (const auto q : questions) all.prompts.push_back(scored(q));
  if (calibrate_) all.reference_of = add_references(all.prompts, set_.train, questions, encoded_);
  return all;
}

}  // namespace uqa::trainer
