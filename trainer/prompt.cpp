#include "trainer/prompt.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <utility>

#include "core/error.h"

namespace uqa::trainer {

namespace {
constexpr const char* kStart = "<|im_start|>";
constexpr const char* kEnd = "<|im_end|>";
constexpr const char* kUserHeader = "<|im_start|>user\n";

const char* history_header(const std::string& language) {
  return language == "zh" ? "用户的浏览序列（从新到旧）：" : "Items in the user's history, newest first:";
}
}  // namespace

const char* name_of(Prompt prompt) {
  switch (prompt) {
    case Prompt::kSoft: return "soft";
    case Prompt::kNone: return "none";
    case Prompt::kText: return "text";
    case Prompt::kShuffled: return "shuffled";
    case Prompt::kZero: return "zero";
  }
  UQA_FAIL(ErrorCode::kInternal, "unknown prompt {}", static_cast<int>(prompt));
}

Prompt prompt_of_name(const std::string& name) {
  for (const Prompt prompt : kPrompts) {
    if (name == name_of(prompt)) return prompt;
  }
  UQA_FAIL(ErrorCode::kConfig, "prompt = {}, must be soft, none, text, shuffled or zero; change --prompt", name);
}

bool has_soft_row(Prompt prompt) { return prompt == Prompt::kSoft || prompt == Prompt::kShuffled || prompt == Prompt::kZero; }

void PromptOptions::validate() const {
  UQA_CHECK(place == "before" || place == "user" || place == "user_end" || place == "assistant", ErrorCode::kConfig,
            "prompt.place = {}, must be before, user, user_end or assistant; change --prompt.place", place);
  UQA_CHECK(soft_tokens > 0, ErrorCode::kConfig, "prompt.soft_tokens = {}, must be > 0", soft_tokens);
  UQA_CHECK(text_items > 0, ErrorCode::kConfig, "text_items = {}, must be > 0; change --text_items", text_items);
  UQA_CHECK(!system || (system->find(kStart) == std::string::npos && system->find(kEnd) == std::string::npos), ErrorCode::kConfig,
            "prompt.system holds the chat's own marker {} or {}; change --prompt.system", kStart, kEnd);
}

Json to_json(const PromptOptions& options) {
  Json json{{"place", options.place}, {"soft_tokens", options.soft_tokens}, {"end_token", options.end_token}, {"text_items", options.text_items}};
  json["system"] = options.system ? Json(*options.system) : Json(nullptr);
  return json;
}

PromptOptions prompt_options_from_json(const Json& json, const std::string& what) {
  PromptOptions options;
  options.place = get<std::string>(json, "place", what);
  options.soft_tokens = get<std::int64_t>(json, "soft_tokens", what);
  options.end_token = get<bool>(json, "end_token", what);
  options.text_items = get<std::int64_t>(json, "text_items", what);
  if (json.contains("system") && !json.at("system").is_null()) options.system = get<std::string>(json, "system", what);
  options.validate();
  return options;
}

PromptEncoder::PromptEncoder(const fs::path& llm_directory, std::string language, PromptOptions options)
    : tokenizer_(format::Tokenizer::load(llm_directory / "tokenizer.json")),
      chat_(format::ChatFormat::load(llm_directory)),
      language_(std::move(language)),
      options_(std::move(options)) {
  options_.validate();
  start_id_ = tokenizer_.token_id(kStart);
  end_id_ = tokenizer_.token_id(kEnd);
  UQA_CHECK(start_id_ >= 0 && end_id_ >= 0, ErrorCode::kData,
            "{}: no token {} or {}; a chat model's tokenizer is needed", (llm_directory / "tokenizer.json").string(), kStart, kEnd);
  for (std::size_t i = 0; i < kNumOptions; ++i) {
    const std::string letter(1, static_cast<char>('A' + static_cast<int>(i)));
    const auto ids = tokenizer_.encode(letter);
    UQA_CHECK(ids.size() == 1, ErrorCode::kConfig,
              "option letter {} is {} tokens of {}, must be one token to be scored; use another LLM", letter, ids.size(),
              (llm_directory / "tokenizer.json").string());
    letter_ids_[i] = ids.front();
  }
  num_turns_ = options_.system || chat_.default_system() ? 3 : 2;
}

std::string PromptEncoder::history_text(const data::Question& question, const data::Dataset* data) const {
  UQA_CHECK(data != nullptr, ErrorCode::kInternal, "a text prompt needs the data set");
  const auto& titles = data->items().titles;
  UQA_CHECK(!titles.empty(), ErrorCode::kConfig,
            "prompt = text, needs item titles and the data set has none; import item metadata with titles, or choose another --prompt");
  std::string text = std::string(history_header(language_)) + "\n";
  const std::int64_t first = std::max(question.begin, question.end - options_.text_items);
  for (std::int64_t t = question.end - 1; t >= first; --t) {
    const std::int64_t item = data->item(question.user, t);
    UQA_CHECK(item >= 0 && item < static_cast<std::int64_t>(titles.size()), ErrorCode::kData,
              "item = {} of user {}, the catalogue has {} titles; import the data again", item, question.user, titles.size());
    text += fmt::format("{}. {}\n", question.end - t, titles[static_cast<std::size_t>(item)]);
  }
  return text + "\n";
}

std::size_t PromptEncoder::soft_place(const std::string& text) const {
  if (options_.place == "before") return 0;
  if (options_.place == "assistant") return text.size();
  // The system text holds no marker, so the first user header is the one of the question's turn, which is the last to end.
  return options_.place == "user" ? text.find(kUserHeader) + std::string_view(kUserHeader).size() : text.rfind(kEnd);
}

EncodedQuestion PromptEncoder::encode(const data::Question& question, Prompt prompt, const data::Dataset* data) const {
  const std::string content = prompt == Prompt::kText ? history_text(question, data) + question.text : question.text;
  std::vector<format::ChatMessage> messages;
  if (options_.system) messages.push_back({"system", *options_.system});
  messages.push_back({"user", content});
  const std::string text = chat_.render(messages, /*add_generation_prompt=*/true);

  EncodedQuestion encoded;
  if (has_soft_row(prompt)) {
    const std::size_t split = soft_place(text);
    encoded.prompt = tokenizer_.encode(std::string_view(text).substr(0, split));
    encoded.soft_index = static_cast<std::int64_t>(encoded.prompt.size());
    encoded.num_soft = options_.soft_tokens;
    encoded.prompt.insert(encoded.prompt.end(), static_cast<std::size_t>(options_.soft_tokens), 0);
    const auto rest = tokenizer_.encode(std::string_view(text).substr(split));
    encoded.prompt.insert(encoded.prompt.end(), rest.begin(), rest.end());
  } else {
    encoded.prompt = tokenizer_.encode(text);
  }
  // A soft row's placeholder may be a marker's id.
  const auto count = [&](std::int64_t id) { return std::count(encoded.prompt.begin(), encoded.prompt.end(), id) - (id == 0 ? encoded.num_soft : 0); };
  UQA_CHECK(count(start_id_) == num_turns_ && count(end_id_) == num_turns_ - 1, ErrorCode::kData,
            "question {}: its text holds the chat's own marker {} or {}, which would open a turn of its own; remove it from titles and stems",
            question.id, kStart, kEnd);

  encoded.answer = tokenizer_.encode(question.answer);
  UQA_CHECK(!encoded.answer.empty(), ErrorCode::kData, "question {}: the answer is empty; build or import the questions again", question.id);
  if (question.options.empty()) return encoded;
  UQA_CHECK(question.options.size() == kNumOptions, ErrorCode::kData, "question {}: {} options, must have {} or none", question.id,
            question.options.size(), kNumOptions);
  for (const auto& option : question.options) {
    auto ids = tokenizer_.encode(option);
    UQA_CHECK(!ids.empty(), ErrorCode::kData, "question {}: an option without words; build the questions again", question.id);
    if (options_.end_token) ids.push_back(end_id_);
    encoded.options.push_back(std::move(ids));
  }
  encoded.gold = static_cast<std::int64_t>(question.gold());
  return encoded;
}

std::vector<EncodedQuestion> PromptEncoder::encode_all(const std::vector<data::Question>& questions, Prompt prompt,
                                                       const data::Dataset* data) const {
  std::vector<EncodedQuestion> encoded(questions.size());
  const std::size_t num_threads = std::clamp<std::size_t>(std::thread::hardware_concurrency(), 1, 16);
  std::vector<std::exception_ptr> errors(num_threads);
  std::atomic<std::size_t> next{0};
  const auto work = [&](std::size_t thread) {
    try {
      for (std::size_t i = next++; i < questions.size(); i = next++) encoded[i] = encode(questions[i], prompt, data);
    } catch (...) {
      errors[thread] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (std::size_t t = 1; t < num_threads; ++t) threads.emplace_back(work, t);
  work(0);
  for (auto& thread : threads) thread.join();
  for (const auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  return encoded;
}

}  // namespace uqa::trainer
