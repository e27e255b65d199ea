#include "trainer/chat_example.h"

#include <algorithm>

#include "core/error.h"
#include "models/format/chat.h"

namespace uqa::trainer {

ChatExamples::ChatExamples(const PromptEncoder& encoder, ChatExampleOptions options)
    : encoder_(encoder), options_(options), system_(encoder.system()), start_id_(encoder.tokenizer().token_id("<|im_start|>")) {
  UQA_CHECK(options_.max_tokens >= 0, ErrorCode::kConfig, "prompt.max_tokens = {}, must be >= 0 (0: nothing is cut); change --prompt.max_tokens", options_.max_tokens);
  UQA_CHECK(!system_.empty(), ErrorCode::kConfig, "objective = chat, needs a system text and the LLM's chat template has none; give --prompt.system TEXT");
}

std::size_t ChatExamples::soft_place(const std::vector<std::int64_t>& ids) const {
  const auto& place = encoder_.options().place;
  if (place == "before") return 0;
  std::vector<std::size_t> turns;  // where the system, the user and the assistant turn begin
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] == start_id_) turns.push_back(i);
  }
  const auto header = [&](const char* role) { return 1 + encoder_.tokenizer().encode(role).size() + encoder_.tokenizer().encode("\n").size(); };
  const std::size_t newline = encoder_.tokenizer().encode("\n").size();
  if (place == "user") return turns[1] + header("user");
  if (place == "user_end") return turns[2] - newline - 1;
  return turns[2] + header("assistant");
}

ChatExample ChatExamples::make(std::int64_t question_id, const std::string& question, const std::string& answer) const {
  const auto& tokenizer = encoder_.tokenizer();
  constexpr std::int64_t kRoom = 256;  // markers, roles and newlines of three turns, with much to spare
  const auto room = kRoom + static_cast<std::int64_t>(tokenizer.encode(system_).size() + tokenizer.encode(question).size() + tokenizer.encode(answer).size());
  constexpr std::int64_t kPad = -2;
  auto whole = format::reference_training_example(tokenizer, system_, {{"user", question}, {"assistant", answer}}, room, kPad);
  const auto length = std::find(whole.ids.begin(), whole.ids.end(), kPad) - whole.ids.begin();
  UQA_CHECK(length < room, ErrorCode::kInternal, "chat of question {}: {} tokens of room are too few", question_id, room);
  whole.ids.resize(static_cast<std::size_t>(length));
  whole.labels.resize(static_cast<std::size_t>(length));
  UQA_CHECK(std::count(whole.ids.begin(), whole.ids.end(), start_id_) == 3, ErrorCode::kData,
            "question {}: its text holds the chat's own marker <|im_start|>, which would open a turn of its own; remove it from titles and stems", question_id);
  const auto place = options_.soft ? soft_place(whole.ids) : 0;

  constexpr std::int64_t kNoLoss = -100;  // of format::ReferenceExample
  ChatExample example;
  const auto limit = options_.max_tokens == 0 ? length : std::min<std::int64_t>(length, options_.max_tokens);
  example.num_cut = length - limit;
  const auto tail = 1 + static_cast<std::int64_t>(tokenizer.encode("\n").size());  // the end marker and the newline behind the answer
  example.answer_lost = limit < length - tail;
  whole.ids.resize(static_cast<std::size_t>(limit));
  whole.labels.resize(static_cast<std::size_t>(limit));
  UQA_CHECK(static_cast<std::int64_t>(place) <= limit, ErrorCode::kConfig,
            "prompt.max_tokens = {}, question {} is cut before the soft token's place at {} ({}); raise it or give --prompt.place before", options_.max_tokens, question_id,
            place, encoder_.options().place);
  example.ids = whole.ids;
  for (std::size_t i = 0; i < whole.ids.size(); ++i) {
    const auto label = i + 1 < whole.labels.size() ? whole.labels[i + 1] : kNoLoss;
    example.targets.push_back(label == kNoLoss ? -1 : label);
  }
  UQA_CHECK(std::any_of(example.targets.begin(), example.targets.end(), [](auto t) { return t >= 0; }), ErrorCode::kConfig,
            "prompt.max_tokens = {}, leaves question {} without a token to learn; raise it", options_.max_tokens, question_id);
  if (!options_.soft) return example;
  example.soft_index = static_cast<std::int64_t>(place);
  example.num_soft = encoder_.options().soft_tokens;
  const auto at = static_cast<std::ptrdiff_t>(place);
  const auto count = static_cast<std::size_t>(example.num_soft);
  example.ids.insert(example.ids.begin() + at, count, 0);
  example.targets.insert(example.targets.begin() + at, count, -1);
  if (place == 0) return example;
  // The row before the soft ones predicted the token behind them: the last soft row does that now.
  std::swap(example.targets[place - 1], example.targets[place - 1 + count]);
  return example;
}

PackedPrompts pack_chats(const std::vector<const ChatExample*>& examples) {
  PackedPrompts packed;
  packed.num_prompts = packed.num_continuations = static_cast<std::int64_t>(examples.size());
  std::vector<std::int64_t> ids, positions, soft_rows, head_rows, tokens, continuations;
  std::vector<float> counts;
  for (std::size_t e = 0; e < examples.size(); ++e) {
    const auto& example = *examples[e];
    const auto begin = static_cast<std::int64_t>(ids.size()), size = static_cast<std::int64_t>(example.ids.size());
    packed.blocks.push_back({.begin = begin, .end = begin + size});
    ids.insert(ids.end(), example.ids.begin(), example.ids.end());
    for (std::int64_t i = 0; i < example.num_soft; ++i) soft_rows.push_back(begin + example.soft_index + i);
    const auto before = tokens.size();
    for (std::int64_t t = 0; t < size; ++t) {
      positions.push_back(t);
      const auto target = example.targets[static_cast<std::size_t>(t)];
      if (target < 0) continue;
      head_rows.push_back(begin + t);
      tokens.push_back(target);
      continuations.push_back(static_cast<std::int64_t>(e));
    }
    counts.push_back(static_cast<float>(tokens.size() - before));
  }
  packed.ids_T = at::tensor(ids, at::kLong);
  packed.positions_T = at::tensor(positions, at::kLong);
  packed.soft_rows_S = at::tensor(soft_rows, at::kLong);
  packed.head_rows_R = at::tensor(head_rows, at::kLong);
  packed.pair_rows_N = at::arange(static_cast<std::int64_t>(head_rows.size()), at::kLong);
  packed.pair_tokens_N = at::tensor(tokens, at::kLong);
  packed.pair_continuations_N = at::tensor(continuations, at::kLong);
  packed.continuation_tokens_C = at::tensor(counts, at::kFloat);
  return packed;
}

}  // namespace uqa::trainer
