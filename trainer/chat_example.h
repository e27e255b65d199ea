// trainer/chat_example.h - the reference's training text of a question: the whole chat, in which the answer and the chat's own markers of
// every turn carry loss (objective "chat").
//
//   const ChatExamples chats(prompt_encoder, {.max_tokens = 512, .soft = true});
//   const auto example = chats.make(question.id, question.text, question.answer);
//   const auto packed = pack_chats({&example});          // then run_prompts(), token_log_probs()
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/prompt_tree.h"

namespace uqa::trainer {

struct ChatExampleOptions {
  std::int64_t max_tokens = 0;  ///< text is cut on the right to so many tokens, soft rows not counted; 0: nothing is cut
  bool soft = true;             ///< the chat has soft rows, where PromptOptions::place says
};

struct ChatExample {
  std::vector<std::int64_t> ids;      ///< soft rows hold the id 0
  std::vector<std::int64_t> targets;  ///< [ids] the token that each row has to predict; -1: none
  std::int64_t soft_index = -1, num_soft = 0;
  std::int64_t num_cut = 0;           ///< tokens that were cut off
  bool answer_lost = false;           ///< the answer's last token is among them
};

/// Immutable; safe to use from several threads. The encoder is kept by reference.
class ChatExamples {
 public:
  /// Error(kConfig) when neither the options nor the LLM's chat template have a system text, which every chat of the reference has.
  ChatExamples(const PromptEncoder& encoder, ChatExampleOptions options);
  /// As format::reference_training_example, without padding, with the soft rows put in. No row predicts the chat's first token, as in the
  /// reference. Error(kConfig) where max_tokens leaves nothing to predict or cuts the text before the soft rows' place.
  [[nodiscard]] ChatExample make(std::int64_t question_id, const std::string& question, const std::string& answer) const;

 private:
  [[nodiscard]] std::size_t soft_place(const std::vector<std::int64_t>& ids) const;
  const PromptEncoder& encoder_;
  ChatExampleOptions options_;
  std::string system_;
  std::int64_t start_id_ = -1;
};

/// One sequence an example; every row with a target is scored. `prompt_heads_B` is left undefined.
[[nodiscard]] PackedPrompts pack_chats(const std::vector<const ChatExample*>& examples);

}  // namespace uqa::trainer
