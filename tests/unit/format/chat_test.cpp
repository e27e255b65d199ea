#include "models/format/chat.h"

#include <algorithm>

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/small_tokenizer.h"
#include "tests/support/temp_dir.h"

namespace uqa::format {
namespace {

using Ids = std::vector<std::int64_t>;

/// The parts of Qwen2.5's template that matter here: a branch with tools, one without, escapes inside literals.
constexpr std::string_view kQwen25 = R"({%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\nWithin <tools></tools> XML tags:\n<tools>" }}
    {{- "\n</tools>\n\n{\"name\": <function-name>}\n</tool_call><|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
)";

constexpr std::string_view kNoDefault =
    "{# ChatML #}{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

TEST(ChatFormat, FindsTheDefaultSystemTextInQwensTemplate) {
  const auto chat = ChatFormat::parse(kQwen25, "t");
  ASSERT_TRUE(chat.default_system().has_value());
  EXPECT_EQ(*chat.default_system(), "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.");
}

TEST(ChatFormat, ATemplateMayHaveNoDefaultSystemText) {
  const auto chat = ChatFormat::parse(kNoDefault, "t");
  EXPECT_FALSE(chat.default_system().has_value());
  EXPECT_EQ(chat.render({{"user", "hi"}}, false), "<|im_start|>user\nhi<|im_end|>\n");
}

TEST(ChatFormat, RendersTheDefaultSystemOnlyWhereNoneIsGiven) {
  const ChatFormat chat{std::optional<std::string>("S")};
  EXPECT_EQ(chat.render({{"user", "Q"}, {"assistant", "A"}}, false),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n");
  EXPECT_EQ(chat.render({{"system", "T"}, {"user", "Q"}}, true),
            "<|im_start|>system\nT<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_UQA_ERROR(chat.render({}, true), ErrorCode::kInternal, "at least one message");
}

TEST(ChatFormat, ReadsTheTemplateFileFirstAndThenTheConfig) {
  const tests::TempDir dir;
  EXPECT_UQA_ERROR(ChatFormat::load(dir.path()), ErrorCode::kData, "tokenizer_config.json");
  write_file_atomic(dir.path() / "tokenizer_config.json", "{}");
  EXPECT_UQA_ERROR(ChatFormat::load(dir.path()), ErrorCode::kData, "instruction-tuned");
  write_file_atomic(dir.path() / "tokenizer_config.json", Json{{"chat_template", kQwen25}}.dump());
  EXPECT_TRUE(ChatFormat::load(dir.path()).default_system().has_value());
  const Json named = Json::array({Json{{"name", "tools"}, {"template", "x"}}, Json{{"name", "default"}, {"template", kQwen25}}});
  write_file_atomic(dir.path() / "tokenizer_config.json", Json{{"chat_template", named}}.dump());
  EXPECT_TRUE(ChatFormat::load(dir.path()).default_system().has_value());
  write_file_atomic(dir.path() / "chat_template.jinja", kNoDefault);
  EXPECT_FALSE(ChatFormat::load(dir.path()).default_system().has_value());
  fs::remove(dir.path() / "chat_template.jinja");
  write_file_atomic(dir.path() / "tokenizer_config.json", Json{{"chat_template", Json::array()}}.dump());
  EXPECT_UQA_ERROR(ChatFormat::load(dir.path()), ErrorCode::kData, "no template named 'default'");
  write_file_atomic(dir.path() / "tokenizer_config.json", Json{{"chat_template", 3}}.dump());
  EXPECT_UQA_ERROR(ChatFormat::load(dir.path()), ErrorCode::kData, "must be a text or a list");
}

TEST(ChatFormat, RefusesOtherFormats) {
  const auto expect_refused = [](const std::string& jinja, const std::string& part) {
    EXPECT_UQA_ERROR(ChatFormat::parse(jinja, "m/chat_template.jinja"), ErrorCode::kData, part);
    EXPECT_UQA_ERROR(ChatFormat::parse(jinja, "m/chat_template.jinja"), ErrorCode::kData, "m/chat_template.jinja");
  };
  const std::string good(kNoDefault);
  expect_refused("", "never writes '<|im_start|>'");
  expect_refused("{{ bos_token + '[INST] ' + messages[0]['content'] + ' [/INST]' }}", "supported is ChatML");
  expect_refused("<|im_start|>" + good, "text outside its expressions");
  expect_refused("{{ bos_token }}" + good, "bos_token");
  std::string trims = good;
  trims.replace(trims.find("m['content']"), 12, "m['content'] | trim");
  expect_refused(trims, "trims messages");
  std::string no_newline = good;
  no_newline.replace(no_newline.find("'<|im_end|>' + '\n'"), 18, "'<|im_end|>'");
  expect_refused(no_newline, "never writes '<|im_end|>'");
  expect_refused(good + "{{ '<|im_start|>system\nA<|im_end|>\n' }}{{ '<|im_start|>system\nB<|im_end|>\n' }}", "two default system texts");
  expect_refused(good + "{{ '<|im_start|>system\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n' }}", "several turns");
  expect_refused(good + "{{ 'open", "has no end");
  expect_refused(good + "{{ 'open\\", "has no end");
  expect_refused(good + "{% if x", "has no end");
  expect_refused(good + "{# x", "has no end");
  expect_refused(good + "\xFF", "not valid UTF-8");
}

TEST(ReferenceTrainingExample, CutsOnTheRightAndPads) {
  const auto tokenizer = Tokenizer::parse(tests::small_tokenizer().dump(), "small");
  const std::vector<ChatMessage> messages{{"user", "abc"}, {"assistant", "x"}};
  const auto whole = reference_training_example(tokenizer, "s", messages, 100, 9);
  ASSERT_EQ(whole.ids.size(), 100u);
  ASSERT_EQ(whole.labels.size(), 100u);
  EXPECT_EQ(whole.ids.back(), 9);
  EXPECT_EQ(whole.labels.back(), -100);
  // <|im_start|> system \n s <|im_end|> \n: six letters, so the first <|im_end|> is at 1 + 6 + 1 + 1.
  EXPECT_EQ(whole.ids[9], 261);
  EXPECT_EQ(whole.labels[9], 261);
  EXPECT_EQ(whole.labels[7], -100);   // the newline after the role
  EXPECT_EQ(whole.labels[10], '\n');  // the one after the turn
  EXPECT_EQ(std::count(whole.labels.begin(), whole.labels.end(), 'x'), 1);
  EXPECT_EQ(std::count(whole.labels.begin(), whole.labels.end(), 257), 0);
  const auto cut = reference_training_example(tokenizer, "s", messages, 12, 9);
  EXPECT_EQ(cut.ids, Ids(whole.ids.begin(), whole.ids.begin() + 12));
  EXPECT_EQ(cut.labels, Ids(whole.labels.begin(), whole.labels.begin() + 12));
  EXPECT_UQA_ERROR(reference_training_example(tokenizer, "s", messages, 0, 9), ErrorCode::kConfig, "max_len = 0");
  Json other = tests::small_tokenizer();
  other["added_tokens"] = Json::array();
  EXPECT_UQA_ERROR(reference_training_example(Tokenizer::parse(other.dump(), "o"), "s", messages, 10, 9), ErrorCode::kData, "ChatML");
}

}  // namespace
}  // namespace uqa::format
