// The reference's training ids and labels (fixtures/llm/chat.json), and the chat templates of the fixture models.
#include <vector>

#include <gtest/gtest.h>

#include "core/json.h"
#include "models/format/chat.h"
#include "tests/support/fixtures.h"

namespace uqa::format {
namespace {

using Ids = std::vector<std::int64_t>;

std::vector<ChatMessage> read_messages(const Json& list, const std::string& what) {
  std::vector<ChatMessage> messages;
  for (const auto& entry : list) {
    messages.push_back({get<std::string>(entry, "role", what), get<std::string>(entry, "content", what)});
  }
  return messages;
}

/// Directories below fixtures/llm that hold a tokenizer.
std::vector<fs::path> llm_directories() {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(tests::fixtures() / "llm")) {
    if (fs::exists(entry.path() / "tokenizer.json")) found.push_back(entry.path());
  }
  return found;
}

TEST(ChatGolden, ReferenceTrainingIdsAndLabelsAreReproduced) {
  const fs::path path = tests::fixtures() / "llm" / "chat.json";
  const Json golden = read_json(path);
  const auto max_len = get<std::int64_t>(golden, "max_len", path.string());
  const auto system = get<std::string>(golden, "system", path.string());
  const auto all_ids = get<std::vector<Ids>>(golden, "input_ids", path.string());
  const auto all_labels = get<std::vector<Ids>>(golden, "labels", path.string());
  const Tokenizer tokenizer = Tokenizer::load(tests::fixtures() / "llm" / "qwen2-tiny" / "tokenizer.json");
  const std::int64_t pad_id = tokenizer.token_id("<|endoftext|>");
  ASSERT_GE(pad_id, 0);
  ASSERT_GT(all_ids.size(), 0u);
  ASSERT_EQ(golden.at("messages").size(), all_ids.size());
  for (std::size_t i = 0; i < all_ids.size(); ++i) {
    auto messages = read_messages(golden.at("messages").at(i), path.string());
    const auto example = reference_training_example(tokenizer, system, messages, max_len, pad_id);
    EXPECT_EQ(example.ids, all_ids[i]) << "example " << i;
    EXPECT_EQ(example.labels, all_labels.at(i)) << "example " << i;
    if (messages.empty() || messages.front().role == "system") continue;
    messages.insert(messages.begin(), {.role = "system", .content = "Another system text."});
    EXPECT_EQ(reference_training_example(tokenizer, system, messages, max_len, pad_id).ids, all_ids[i]) << "a system message of its own is dropped, example " << i;
  }
}

TEST(ChatGolden, TemplatesOfTheFixtureModelsCarryTheReferencesSystemText) {
  const fs::path path = tests::fixtures() / "llm" / "chat.json";
  const auto system = get<std::string>(read_json(path), "system", path.string());
  const auto directories = llm_directories();
  ASSERT_FALSE(directories.empty());
  for (const auto& directory : directories) {
    const auto chat = ChatFormat::load(directory);
    ASSERT_TRUE(chat.default_system().has_value()) << directory;
    EXPECT_EQ(*chat.default_system(), system) << directory;
    EXPECT_EQ(chat.render({{"user", "Q"}}, true),
              "<|im_start|>system\n" + system + "<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n");
  }
}

}  // namespace
}  // namespace uqa::format
