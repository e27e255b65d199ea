// trainer/prompt.h - token ids of a personalized question: the chat prompt, the row of the soft token, the words of the options.
//
//   const PromptEncoder encoder(llm_directory, language, {.place = "user"});
//   const EncodedQuestion q = encoder.encode(question, Prompt::kSoft);   // q.prompt[q.soft_index] is the soft token's row
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "data/dataset.h"
#include "data/question.h"
#include "models/format/chat.h"
#include "models/format/tokenizer.h"

namespace uqa::trainer {

/// What the LLM is given of the user.
enum class Prompt {
  kSoft,      ///< the soft token of the question's own user
  kNone,      ///< nothing
  kText,      ///< titles of the newest items of the history, as text
  kShuffled,  ///< the soft token of another user
  kZero,      ///< a soft token of zeros
};
inline constexpr std::array kPrompts{Prompt::kSoft, Prompt::kNone, Prompt::kText, Prompt::kShuffled, Prompt::kZero};
[[nodiscard]] const char* name_of(Prompt prompt);
/// Error(kConfig) naming the known ones.
[[nodiscard]] Prompt prompt_of_name(const std::string& name);
/// True where the prompt holds a row for the soft token.
[[nodiscard]] bool has_soft_row(Prompt prompt);

inline constexpr std::size_t kNumOptions = 4;

struct PromptOptions {
  /// Soft token "before" the whole chat (the reference), first in the "user" turn, last in it ("user_end"), or first in the "assistant"
  /// turn. In the last two it comes behind the question, so that questions with the same text share all rows before it.
  std::string place = "before";
  std::int64_t soft_tokens = 1;       ///< soft rows of a prompt, one behind the other; > 0
  std::optional<std::string> system;  ///< system text; absent: the chat template's own
  bool end_token = false;             ///< the words of an option end with "<|im_end|>" when they are scored
  std::int64_t text_items = 32;       ///< most titles of a text prompt; > 0
  void validate() const;              ///< Error(kConfig) naming the field
};
[[nodiscard]] Json to_json(const PromptOptions& options);
[[nodiscard]] PromptOptions prompt_options_from_json(const Json& json, const std::string& what);

struct EncodedQuestion {
  std::vector<std::int64_t> prompt;                ///< up to and with "<|im_start|>assistant\n"; the soft rows hold the id 0
  std::int64_t soft_index = -1;                    ///< index of the first soft row in `prompt`; -1: none
  std::int64_t num_soft = 0;                       ///< soft rows, one behind the other
  std::vector<std::vector<std::int64_t>> options;  ///< words of each option; empty for a free-form question
  std::vector<std::int64_t> answer;                ///< the answer as stored: gold letter, or free text
  std::int64_t gold = -1;                          ///< index of the gold option; -1 for a free-form question
};

/// Immutable; safe to use from several threads.
class PromptEncoder {
 public:
  /// Reads tokenizer and chat format of a Hugging Face directory. The letters A to D must be one token each: Error(kConfig).
  PromptEncoder(const fs::path& llm_directory, std::string language, PromptOptions options);

  /// `data` gives the titles of a text prompt and may be null otherwise. Error(kData) for a text without words, or one that
  /// holds the chat's own markers; Error(kConfig) for a text prompt from data without titles.
  [[nodiscard]] EncodedQuestion encode(const data::Question& question, Prompt prompt, const data::Dataset* data = nullptr) const;
  /// encode() of every question, on all cores; order kept.
  [[nodiscard]] std::vector<EncodedQuestion> encode_all(const std::vector<data::Question>& questions, Prompt prompt,
                                                        const data::Dataset* data = nullptr) const;

  [[nodiscard]] const std::array<std::int64_t, kNumOptions>& letter_ids() const { return letter_ids_; }
  [[nodiscard]] std::int64_t end_id() const { return end_id_; }  ///< "<|im_end|>"
  [[nodiscard]] const format::Tokenizer& tokenizer() const { return tokenizer_; }
  [[nodiscard]] const PromptOptions& options() const { return options_; }
  /// The system text of every prompt: the options', else the chat template's own; "" where there is none.
  [[nodiscard]] std::string system() const { return options_.system.value_or(chat_.default_system().value_or("")); }

 private:
  /// Byte of the rendered chat at which the soft row stands.
  [[nodiscard]] std::size_t soft_place(const std::string& text) const;
  [[nodiscard]] std::string history_text(const data::Question& question, const data::Dataset* data) const;

  format::Tokenizer tokenizer_;
  format::ChatFormat chat_;
  std::string language_;
  PromptOptions options_;
  std::array<std::int64_t, kNumOptions> letter_ids_{};
  std::int64_t start_id_ = -1, end_id_ = -1;
  std::int64_t num_turns_ = 0;  ///< "<|im_start|>" markers of a prompt
};

}  // namespace uqa::trainer
