// Thousands of damaged inputs for the parsers of foreign bytes, the same on every run.
#include <algorithm>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "models/format/safetensors.h"
#include "tests/fuzz/targets.h"
#include "tests/support/fixtures.h"
#include "tests/support/mutate.h"
#include "tests/support/small_tokenizer.h"
#include "tests/support/temp_dir.h"

namespace uqa {
namespace {

std::vector<fs::path> fixture_files(const std::string& folder, const std::string& name) {
  std::vector<fs::path> found;
  for (const auto& entry : fs::recursive_directory_iterator(tests::fixtures() / folder)) {
    if (entry.path().filename() == name) found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  UQA_CHECK(!found.empty(), ErrorCode::kData, "no {} below {}", name, (tests::fixtures() / folder).string());
  return found;
}

/// Small files with several tensors, one of them empty, and metadata.
std::string small_safetensors() {
  const tests::TempDir dir;
  const std::string data(24, 'x');
  const auto bytes = std::as_bytes(std::span(data));
  format::write_safetensors(dir.path() / "f",
                            {{"a", "F32", {2, 3}, bytes}, {"b", "U8", {24}, bytes}, {"c", "I64", {3}, bytes}, {"d", "BF16", {0, 7}, {}}},
                            {{"format", "pt"}});
  return read_file(dir.path() / "f");
}

TEST(FormatFuzz, SafetensorsIsReadOrRefused) {
  const auto small = tests::fuzz({small_safetensors()}, {.rounds = 200'000}, fuzz::safetensors);
  EXPECT_GT(small.accepted, 1000u);
  EXPECT_GT(small.refused, 1000u);
  std::vector<std::string> models;
  for (const auto& path : fixture_files("llm", "model.safetensors")) models.push_back(read_file(path));
  const auto large = tests::fuzz(std::move(models), {.rounds = 6'000, .seed = 2, .focus_bytes = 3'000}, fuzz::safetensors);
  EXPECT_GT(large.refused, 100u);
}

TEST(FormatFuzz, TokenizerJsonIsLoadedOrRefused) {
  const auto small = tests::fuzz({tests::small_tokenizer().dump()}, {.rounds = 40'000}, fuzz::tokenizer);
  EXPECT_GT(small.accepted, 500u);
  EXPECT_GT(small.refused, 500u);
  // Real ones with the vocabulary at the end: the changes fall on added tokens, the pre-tokenizer and its regular expression.
  std::vector<std::string> real;
  for (const auto& path : fixture_files("llm", "tokenizer.json")) {
    auto json = nlohmann::ordered_json::parse(read_file(path));
    auto model = json["model"];
    json.erase("model");
    json["model"] = std::move(model);
    real.push_back(json.dump());
  }
  const auto large = tests::fuzz(std::move(real), {.rounds = 8'000, .seed = 2, .focus_bytes = 1'600}, fuzz::tokenizer);
  EXPECT_GT(large.accepted, 100u);
  EXPECT_GT(large.refused, 100u);
}

TEST(FormatFuzz, TextIsEncodedAndRestoredOrRefused) {
  const auto outcome = tests::fuzz({"abc abbc  It's 42!\n\n<|im_start|>user\n<|im_end|>> NOTE", "e\u0301中文🧑\u200d Ａ①ﬁ \u0085\u180E"},
                                   {.rounds = 150'000}, fuzz::tokenizer_text);
  EXPECT_GT(outcome.accepted, 1000u);
  EXPECT_GT(outcome.refused, 1000u);
}

TEST(FormatFuzz, ChatTemplateIsRecognisedOrRefused) {
  std::vector<std::string> corpus;
  for (const auto& path : fixture_files("", "chat_template.jinja")) corpus.push_back(read_file(path));
  const auto outcome = tests::fuzz(std::move(corpus), {.rounds = 150'000}, fuzz::chat_template);
  EXPECT_GT(outcome.accepted, 1000u);
  EXPECT_GT(outcome.refused, 1000u);
}

TEST(Mutator, GivesTheSameBytesForTheSameNumber) {
  const tests::Mutator a({"abcdefgh", "12345678"}, 1), b({"abcdefgh", "12345678"}, 1), other({"abcdefgh", "12345678"}, 2);
  int equal_to_other = 0, unchanged = 0;
  for (std::uint64_t i = 0; i < 500; ++i) {
    EXPECT_EQ(a(i), b(i));
    equal_to_other += a(i) == other(i);
    unchanged += a(i) == "abcdefgh" || a(i) == "12345678";
  }
  EXPECT_LT(equal_to_other, 100);
  EXPECT_LT(unchanged, 100);
}

}  // namespace
}  // namespace uqa
