// trainer/align_questions.h - the questions of an alignment run: tokenised, split by user, in groups that share their text; private to trainer/.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "data/question.h"
#include "trainer/align.h"
#include "trainer/align_parts.h"
#include "trainer/chat_example.h"

namespace uqa::trainer {

class AlignQuestions {
 public:
  /// Reads config.questions (built from `data`), tokenises them with config.llm's tokenizer and splits users into train and validation.
  /// Error(kConfig) or Error(kData) as the parts say.
  AlignQuestions(const AlignConfig& config, const data::Dataset& data);

  /// What is scored behind question `q`'s prompt; points into this object.
  [[nodiscard]] ScoredPrompt scored(std::size_t q) const;
  struct Scored {
    std::vector<ScoredPrompt> prompts;           ///< one a question; with config.calibrate, behind them the same about the average user
    std::vector<std::int64_t> reference_of;      ///< config.calibrate: the latter's index for each question; else empty
  };
  [[nodiscard]] Scored scored(const std::vector<std::size_t>& questions) const;
  /// The LLM's input for some questions and what is scored in it; with config.calibrate behind them the same about the average user.
  struct Packed {
    PackedPrompts prompts;
    std::vector<std::int64_t> reference_of;      ///< as in Scored
  };
  [[nodiscard]] Packed packed(const std::vector<std::size_t>& questions) const;
  /// LLM rows that packed() gives them.
  [[nodiscard]] std::int64_t rows(const std::vector<std::size_t>& questions) const;
  /// Objective "chat": texts of all() that max_tokens cuts, those that lose their answer, and the rows of the longest.
  struct ChatCounts {
    std::int64_t cut = 0, answer_lost = 0, longest_rows = 0;
  };
  [[nodiscard]] const ChatCounts& chat_counts() const { return chat_counts_; }

  [[nodiscard]] const std::vector<data::Question>& all() const { return set_.train; }
  [[nodiscard]] const EncodedQuestion& encoded(std::size_t q) const { return encoded_[q]; }
  [[nodiscard]] const std::vector<EncodedQuestion>& all_encoded() const { return encoded_; }
  [[nodiscard]] const PromptEncoder& prompts() const { return *prompts_; }
  [[nodiscard]] const std::string& digest() const { return set_.digest; }
  /// Samples of training, and what validates: indices into all().
  [[nodiscard]] const std::vector<QuestionGroup>& train() const { return train_; }
  [[nodiscard]] const std::vector<QuestionGroup>& valid() const { return valid_; }
  /// Those of the held-out users that config.eval asks; empty when it never does.
  [[nodiscard]] const std::vector<QuestionGroup>& asked() const { return asked_; }
  [[nodiscard]] bool choice() const { return choice_; }
  [[nodiscard]] bool learn_letter() const { return learn_letter_; }
  [[nodiscard]] bool learn_text() const { return learn_text_; }

 private:
  void tokenise(const AlignConfig& config, const data::Dataset& data);
  void split(const AlignConfig& config);

  void make_chats(const AlignConfig& config);

  bool choice_, chat_, calibrate_, learn_letter_, learn_text_;
  data::QuestionSet set_;
  std::unique_ptr<PromptEncoder> prompts_;
  LetterTokens letters_;
  std::vector<EncodedQuestion> encoded_;
  std::vector<std::vector<std::int64_t>> gold_letter_, gold_text_;  ///< "lm": gold answers with the end token
  std::vector<ChatExample> chats_;                                  ///< objective "chat"
  ChatCounts chat_counts_;
  std::vector<QuestionGroup> train_, valid_, asked_;
};

}  // namespace uqa::trainer
