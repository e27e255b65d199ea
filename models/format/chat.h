// models/format/chat.h - the ChatML format of Qwen2 and SmolLM2: turns into text, and the ids of its pieces.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "models/format/tokenizer.h"

namespace uqa::format {

struct ChatMessage {
  std::string role;     ///< "system", "user", "assistant"
  std::string content;
};

/// How a model's chat template frames messages. Only ChatML ("<|im_start|>role\ncontent<|im_end|>\n") is supported; the
/// directory's template is recognised by comparing its text's fixed parts, anything else is refused: Error(kData).
class ChatFormat {
 public:
  /// Reads chat_template.jinja or tokenizer_config.json's chat_template from a Hugging Face directory; the default system
  /// text (inserted when the first message is not a system one; may be absent) comes from the template.
  [[nodiscard]] static ChatFormat load(const fs::path& llm_directory);
  /// Same, from the template's text; `what` names it in the error.
  [[nodiscard]] static ChatFormat parse(std::string_view jinja, const std::string& what);
  explicit ChatFormat(std::optional<std::string> default_system) : default_system_(std::move(default_system)) {}

  /// The whole text, with "<|im_start|>assistant\n" at the end when `add_generation_prompt`.
  [[nodiscard]] std::string render(const std::vector<ChatMessage>& messages, bool add_generation_prompt) const;
  [[nodiscard]] const std::optional<std::string>& default_system() const { return default_system_; }

 private:
  std::optional<std::string> default_system_;
};

/// Training ids and labels (-100 = no loss), as the reference builds them: every turn's "<|im_start|>", "<|im_end|>" and "\n"
/// carry loss, and the assistant's content; role names and other contents do not. `system` takes the place of a first system message. Padded with `pad_id` to `max_len`; a text longer
/// than that is cut on the right as there. (reference section 4c; fixture llm/chat.json)
struct ReferenceExample {
  std::vector<std::int64_t> ids, labels;
};
[[nodiscard]] ReferenceExample reference_training_example(const Tokenizer& tokenizer, const std::string& system,
                                                          const std::vector<ChatMessage>& messages, std::int64_t max_len, std::int64_t pad_id);

}  // namespace uqa::format
