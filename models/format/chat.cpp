#include "models/format/chat.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/json.h"
#include "models/format/utf8.h"

namespace uqa::format {
namespace {

constexpr std::string_view kStart = "<|im_start|>";
constexpr std::string_view kEnd = "<|im_end|>";
constexpr std::int64_t kNoLoss = -100;
constexpr std::size_t kMaxTemplateBytes = std::size_t{1} << 20;

/// Finds the text literals of a Jinja template: quoted texts inside {{ }} and {% %}, with their escapes resolved.
class JinjaScanner {
 public:
  JinjaScanner(std::string_view text, const std::string& what) : text_(text), what_(what) {}

  struct Result {
    std::vector<std::string> literals;  ///< in order
    std::string code;                   ///< expressions and statements with the literals taken out
    std::string plain;                  ///< text outside {{ }} and {% %}, comments left out
  };

  Result scan() {
    while (at_ < text_.size()) {
      const std::string_view opening = text_.substr(at_, 2);
      if (opening == "{#") {
        const auto end = text_.find("#}", at_ + 2);
        check_closed(end != std::string_view::npos, "comment");
        at_ = end + 2;
      } else if (opening == "{{" || opening == "{%") {
        at_ += 2;
        scan_block(opening == "{{" ? "}}" : "%}");
      } else {
        result_.plain += text_[at_++];
      }
    }
    return std::move(result_);
  }

 private:
  void check_closed(bool closed, std::string_view part) const {
    UQA_CHECK(closed, ErrorCode::kData, "{}: a {} that begins before byte {} has no end; the file is damaged", what_, part, at_);
  }

  void scan_block(std::string_view closing) {
    for (;;) {
      check_closed(at_ < text_.size(), "block");
      if (text_.substr(at_, 2) == closing) {
        at_ += 2;
        result_.code += ' ';
        return;
      }
      const char c = text_[at_++];
      if (c == '\'' || c == '"') {
        scan_literal(c);
        result_.code += ' ';
      } else {
        result_.code += c;
      }
    }
  }

  void scan_literal(char quote) {
    std::string literal;
    for (;;) {
      check_closed(at_ < text_.size(), "text literal");
      char c = text_[at_++];
      if (c == quote) break;
      if (c == '\\') {
        check_closed(at_ < text_.size(), "text literal");
        c = text_[at_++];
        if (c == 'n') c = '\n';
        else if (c == 't') c = '\t';
        else if (c == 'r') c = '\r';
        else if (c != '\\' && c != '\'' && c != '"') literal += '\\';  // unknown escapes stay as they are
      }
      literal += c;
    }
    result_.literals.push_back(std::move(literal));
  }

  std::string_view text_;
  const std::string& what_;
  std::size_t at_ = 0;
  Result result_;
};

bool is_blank(std::string_view text) { return text.find_first_not_of(" \t\r\n") == std::string_view::npos; }

/// Whether a message's content is trimmed; literals are out of `code` by now, so message['content'] reads message[ ].
bool changes_content(std::string_view code) {
  std::string squeezed;
  std::copy_if(code.begin(), code.end(), std::back_inserter(squeezed), [](char c) { return c != ' ' && c != '\n'; });
  return squeezed.find("content|trim") != std::string::npos || squeezed.find("[]|trim") != std::string::npos;
}

std::string template_of_config(const fs::path& path) {
  const Json config = read_json(path);
  UQA_CHECK(config.is_object() && config.contains("chat_template"), ErrorCode::kData,
            "{}: key 'chat_template' is missing and there is no chat_template.jinja beside it; use an instruction-tuned model", path.string());
  const Json& value = config.at("chat_template");
  if (value.is_string()) return value.get<std::string>();
  UQA_CHECK(value.is_array(), ErrorCode::kData, "{}: chat_template must be a text or a list of named templates", path.string());
  for (const auto& entry : value) {
    if (get<std::string>(entry, "name", path.string()) == "default") return get<std::string>(entry, "template", path.string());
  }
  UQA_FAIL(ErrorCode::kData, "{}: chat_template has no template named 'default'", path.string());
}

}  // namespace

ChatFormat ChatFormat::load(const fs::path& llm_directory) {
  const fs::path jinja = llm_directory / "chat_template.jinja";
  if (fs::exists(jinja)) return parse(read_file(jinja), jinja.string());
  const fs::path config = llm_directory / "tokenizer_config.json";
  return parse(template_of_config(config), config.string() + ": chat_template");
}

ChatFormat ChatFormat::parse(std::string_view jinja, const std::string& what) {
  constexpr std::string_view kSupported = "supported is ChatML: '<|im_start|>role\\ncontent<|im_end|>\\n' for every message";
  UQA_CHECK(jinja.size() <= kMaxTemplateBytes, ErrorCode::kData, "{}: {} bytes, a chat template must be at most {}", what, jinja.size(),
            kMaxTemplateBytes);
  const std::size_t invalid = find_invalid_utf8(jinja);
  UQA_CHECK(invalid == std::string_view::npos, ErrorCode::kData, "{}: not valid UTF-8 at byte {}; the file is damaged", what, invalid);
  const auto parts = JinjaScanner(jinja, what).scan();

  std::string joined;  // what the template writes, with the messages' own texts left out
  for (const auto& literal : parts.literals) joined += literal;
  for (const std::string_view fixed : {"<|im_start|>", "<|im_end|>\n", "<|im_start|>assistant\n"}) {
    UQA_CHECK(joined.find(fixed) != std::string::npos, ErrorCode::kData, "{}: the template never writes '{}'; {}", what,
              fixed.substr(0, fixed.find('\n')), kSupported);
  }
  UQA_CHECK(is_blank(parts.plain), ErrorCode::kData, "{}: the template has text outside its expressions; {}", what, kSupported);
  UQA_CHECK(parts.code.find("bos_token") == std::string::npos, ErrorCode::kData, "{}: the template writes bos_token; {}", what, kSupported);
  UQA_CHECK(!changes_content(parts.code), ErrorCode::kData, "{}: the template trims messages; {}", what, kSupported);

  // The default system message is the one literal that is a whole system turn.
  const std::string opening = std::string(kStart) + "system\n", closing = std::string(kEnd) + "\n";
  std::optional<std::string> system;
  for (const auto& literal : parts.literals) {
    if (literal.size() < opening.size() + closing.size() || !literal.starts_with(opening) || !literal.ends_with(closing)) continue;
    std::string text = literal.substr(opening.size(), literal.size() - opening.size() - closing.size());
    UQA_CHECK(text.find(kStart) == std::string::npos && text.find(kEnd) == std::string::npos, ErrorCode::kData,
              "{}: one text of the template holds several turns; {}", what, kSupported);
    UQA_CHECK(!system || *system == text, ErrorCode::kData, "{}: the template has two default system texts, '{}' and '{}'; {}", what,
              system->substr(0, 60), text.substr(0, 60), kSupported);
    system = std::move(text);
  }
  return ChatFormat(std::move(system));
}

std::string ChatFormat::render(const std::vector<ChatMessage>& messages, bool add_generation_prompt) const {
  UQA_CHECK(!messages.empty(), ErrorCode::kInternal, "a chat needs at least one message");
  std::string text;
  const auto add = [&](std::string_view role, std::string_view content) {
    text += fmt::format("{}{}\n{}{}\n", kStart, role, content, kEnd);
  };
  if (default_system_ && messages.front().role != "system") add("system", *default_system_);
  for (const auto& message : messages) add(message.role, message.content);
  if (add_generation_prompt) text += fmt::format("{}assistant\n", kStart);
  return text;
}

ReferenceExample reference_training_example(const Tokenizer& tokenizer, const std::string& system, const std::vector<ChatMessage>& messages,
                                            std::int64_t max_len, std::int64_t pad_id) {
  UQA_CHECK(max_len > 0, ErrorCode::kConfig, "max_len = {}, must be above 0", max_len);
  const std::int64_t start = tokenizer.token_id(kStart), end = tokenizer.token_id(kEnd);
  UQA_CHECK(start >= 0 && end >= 0, ErrorCode::kData, "the tokenizer has no '{}' or '{}'; use a model with the ChatML format", kStart, kEnd);
  const auto newline = tokenizer.encode("\n");
  ReferenceExample example;
  const auto append = [&](const std::vector<std::int64_t>& ids, bool loss) {
    for (const std::int64_t id : ids) {
      example.ids.push_back(id);
      example.labels.push_back(loss ? id : kNoLoss);
    }
  };
  // Every part is tokenized alone, so no token spans two of them.
  const auto add_turn = [&](const std::string& role, const std::string& content) {
    append({start}, true);
    append(tokenizer.encode(role), false);
    append(newline, false);
    append(tokenizer.encode(content), role == "assistant");
    append({end}, true);
    append(newline, true);
  };
  add_turn("system", system);
  // A first message of the system gives way to `system`, as there.
  const bool skips = !messages.empty() && messages.front().role == "system";
  for (std::size_t i = skips ? 1 : 0; i < messages.size(); ++i) add_turn(messages[i].role, messages[i].content);
  example.ids.resize(static_cast<std::size_t>(max_len), pad_id);
  example.labels.resize(static_cast<std::size_t>(max_len), kNoLoss);
  return example;
}

}  // namespace uqa::format
