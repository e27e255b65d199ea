#include "models/format/tokenizer.h"

#include <thread>

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/small_tokenizer.h"
#include "tests/support/temp_dir.h"

namespace uqa::format {
namespace {

using Ids = std::vector<std::int64_t>;

Tokenizer make(const Json& json) { return Tokenizer::parse(json.dump(), "small"); }

TEST(Tokenizer, AppliesMergesByRankAndThenFromTheLeft) {
  const auto tokenizer = make(tests::small_tokenizer());
  EXPECT_EQ(tokenizer.encode("abc"), (Ids{257}));       // ab first (rank 0), then abc
  EXPECT_EQ(tokenizer.encode("bc"), (Ids{258}));
  EXPECT_EQ(tokenizer.encode("abbc"), (Ids{256, 258}));
  EXPECT_EQ(tokenizer.encode("ababc"), (Ids{256, 257}));
  EXPECT_EQ(tokenizer.encode("x ab"), (Ids{'x', ' ', 256}));  // rank 0 takes the a before the space can
  EXPECT_EQ(tokenizer.encode("x ac"), (Ids{'x', 259, 'c'}));
  EXPECT_EQ(tokenizer.encode(""), Ids{});
  EXPECT_EQ(tokenizer.vocab_size(), 264);
}

TEST(Tokenizer, MergesNeverCrossPieces) {
  const auto tokenizer = make(tests::small_tokenizer());
  EXPECT_EQ(tokenizer.encode("a1b"), (Ids{'a', '1', 'b'}));
  auto json = tests::small_tokenizer();
  json["pre_tokenizer"] = Json{{"type", "Sequence"},
                               {"pretokenizers", {Json{{"type", "Digits"}, {"individual_digits", true}}, json["pre_tokenizer"]}}};
  json["model"]["vocab"]["11"] = 300;
  json["model"]["merges"].push_back(Json::array({"1", "1"}));
  EXPECT_EQ(make(json).encode("11"), (Ids{'1', '1'}));
  json["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = false;
  EXPECT_EQ(make(json).encode("11"), (Ids{300}));
}

TEST(Tokenizer, ReadsMergesAsTextsToo) {
  auto json = tests::small_tokenizer();
  json["model"]["merges"] = Json::array({"a b", "ab c", "b c", "Ġ a"});
  EXPECT_EQ(make(json).encode("abc abbc"), make(tests::small_tokenizer()).encode("abc abbc"));
}

TEST(Tokenizer, IgnoreMergesTakesAWholeTokenFirst) {
  auto json = tests::small_tokenizer();
  json["model"]["vocab"]["xyz"] = 300;  // no merge makes it
  EXPECT_EQ(make(json).encode("xyz"), (Ids{'x', 'y', 'z'}));
  json["model"]["ignore_merges"] = true;
  EXPECT_EQ(make(json).encode("xyz"), (Ids{300}));
  EXPECT_EQ(make(json).encode("abbc"), (Ids{256, 258}));
}

TEST(Tokenizer, BytesWithoutATokenAreLeftOut) {
  auto json = tests::small_tokenizer();
  json["model"]["vocab"].erase("x");
  EXPECT_EQ(make(json).encode("axbxc"), (Ids{257}));  // what is left moves together
  EXPECT_EQ(make(json).encode("x"), Ids{});
}

TEST(Tokenizer, AddedTokensAreTheLongestAtTheirPlace) {
  const auto tokenizer = make(tests::small_tokenizer());
  EXPECT_EQ(tokenizer.encode("<|im_start|>abc<|im_end|>"), (Ids{260, 257, 261}));
  EXPECT_EQ(tokenizer.encode("<|im_end|>><|im_end|>"), (Ids{262, 261}));
  EXPECT_EQ(tokenizer.encode("<|im_start|").size(), 11u);  // not whole: plain text
  EXPECT_EQ(tokenizer.encode("aNOTEb"), (Ids{'a', 263, 'b'}));
  EXPECT_EQ(tokenizer.token_id("<|im_end|>"), 261);
  EXPECT_EQ(tokenizer.token_id("abc"), 257);
  EXPECT_EQ(tokenizer.token_id("absent"), -1);
}

TEST(Tokenizer, OnlyNormalizedAddedTokensMatchAfterNormalization) {
  auto json = tests::small_tokenizer();
  json["normalizer"] = {{"type", "NFC"}};
  json["added_tokens"][2]["content"] = "É!";  // not normalized
  json["added_tokens"][3]["content"] = "é!";  // normalized
  const auto tokenizer = make(json);
  EXPECT_EQ(tokenizer.encode("e\u0301!"), (Ids{263}));
  EXPECT_EQ(tokenizer.encode("é!"), (Ids{263}));
  EXPECT_EQ(tokenizer.encode("É!"), (Ids{262}));
  EXPECT_EQ(tokenizer.encode("E\u0301!"), (Ids{0xC3, 0x89, '!'}));
  json["added_tokens"][3]["content"] = "e\u0301!";  // is itself normalized first
  EXPECT_EQ(make(json).encode("e\u0301!"), (Ids{263}));
}

TEST(Tokenizer, DecodeJoinsBytesAndReplacesBrokenOnes) {
  const auto tokenizer = make(tests::small_tokenizer());
  const std::string text = "abc 中é🧑\n";
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  EXPECT_EQ(tokenizer.decode({0xE4, 0xB8}), "\uFFFD");
  EXPECT_EQ(tokenizer.decode({260, 257, 261, 263}), "<|im_start|>abc<|im_end|>NOTE");
  EXPECT_EQ(tokenizer.decode({260, 257, 261, 263}, true), "abcNOTE");
  EXPECT_EQ(tokenizer.decode({-5, 'a', 1'000'000}), "a");
  EXPECT_EQ(tokenizer.decode({}), "");
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8) {
  const auto tokenizer = make(tests::small_tokenizer());
  EXPECT_UQA_ERROR(tokenizer.encode("ab\xFF"), ErrorCode::kData, "not valid UTF-8 at byte 2 of 3");
}

TEST(Tokenizer, LongPiecesAreNotQuadratic) {
  const auto tokenizer = make(tests::small_tokenizer());
  std::string text;
  for (int i = 0; i < 200'000; ++i) text += "abc";
  EXPECT_EQ(tokenizer.encode(text), Ids(200'000, 257));
}

TEST(Tokenizer, GivesTheSameIdsFromSeveralThreads) {
  const auto tokenizer = make(tests::small_tokenizer());
  const std::string text = "abc abbc <|im_start|> x ab 中";
  const Ids expected = tokenizer.encode(text);
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (int& count : wrong) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) count += tokenizer.encode(text) != expected;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST(Tokenizer, LoadNamesTheFile) {
  const tests::TempDir dir;
  const auto path = dir.path() / "tokenizer.json";
  write_file_atomic(path, tests::small_tokenizer().dump());
  EXPECT_EQ(Tokenizer::load(path).encode("abc"), (Ids{257}));
  write_file_atomic(path, "{");
  EXPECT_UQA_ERROR(Tokenizer::load(path), ErrorCode::kData, path.string());
  EXPECT_UQA_ERROR(Tokenizer::load(dir.path() / "absent.json"), ErrorCode::kData, "absent.json");
}

}  // namespace
}  // namespace uqa::format
