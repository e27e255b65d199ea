// What a tokenizer.json may not hold: features that are not supported, and damage.
#include <functional>

#include <gtest/gtest.h>

#include "models/format/tokenizer.h"
#include "tests/support/expect_error.h"
#include "tests/support/small_tokenizer.h"

namespace uqa::format {
namespace {

/// Expects the small tokenizer to be refused after `change`, with `part` and the file's name in the message.
void expect_refused(const std::string& part, const std::function<void(Json&)>& change) {
  Json json = tests::small_tokenizer();
  change(json);
  EXPECT_UQA_ERROR(Tokenizer::parse(json.dump(), "tok.json"), ErrorCode::kData, part);
  EXPECT_UQA_ERROR(Tokenizer::parse(json.dump(), "tok.json"), ErrorCode::kData, "tok.json");
}

TEST(TokenizerRefusals, FeaturesThatAreNotSupportedAreNamedWithWhatIs) {
  expect_refused("model 'Unigram' is not supported; supported: BPE", [](Json& j) { j["model"]["type"] = "Unigram"; });
  expect_refused("dropout is not supported", [](Json& j) { j["model"]["dropout"] = 0.1; });
  expect_refused("byte_fallback is not supported", [](Json& j) { j["model"]["byte_fallback"] = true; });
  expect_refused("continuing_subword_prefix is not supported", [](Json& j) { j["model"]["continuing_subword_prefix"] = "##"; });
  expect_refused("end_of_word_suffix is not supported", [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; });
  expect_refused("unk_token with a vocabulary that lacks some bytes", [](Json& j) {
    j["model"]["unk_token"] = "a";
    j["model"]["vocab"].erase("x");
  });
  expect_refused("normalizer 'NFKC' is not supported; supported: NFC or none", [](Json& j) { j["normalizer"] = {{"type", "NFKC"}}; });
  expect_refused("pre_tokenizer 'Whitespace' is not supported", [](Json& j) { j["pre_tokenizer"] = {{"type", "Whitespace"}}; });
  expect_refused("without ByteLevel", [](Json& j) { j["pre_tokenizer"] = nullptr; });
  expect_refused("without ByteLevel", [](Json& j) { j["pre_tokenizer"] = {{"type", "Digits"}, {"individual_digits", true}}; });
  expect_refused("add_prefix_space is not supported", [](Json& j) { j["pre_tokenizer"]["add_prefix_space"] = true; });
  expect_refused("after ByteLevel", [](Json& j) {
    j["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {j["pre_tokenizer"], {{"type", "Digits"}}}}};
  });
  expect_refused("decoder 'Metaspace' is not supported", [](Json& j) { j["decoder"] = {{"type", "Metaspace"}}; });
  expect_refused("without decoder", [](Json& j) { j["decoder"] = nullptr; });
  expect_refused("truncation is not supported", [](Json& j) { j["truncation"] = {{"max_length", 8}}; });
  expect_refused("padding is not supported", [](Json& j) { j["padding"] = Json::object(); });
  expect_refused("lstrip of added token '<|im_start|>'", [](Json& j) { j["added_tokens"][0]["lstrip"] = true; });
  expect_refused("single_word of added token", [](Json& j) { j["added_tokens"][1]["single_word"] = true; });
}

TEST(TokenizerRefusals, SplitsOtherThanRegexIsolated) {
  const auto with_split = [](Json split) {
    return [split = std::move(split)](Json& j) {
      j["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, j["pre_tokenizer"]}}};
    };
  };
  const Json regex{{"Regex", "x"}};
  expect_refused("behavior 'Removed' is not supported", with_split({{"type", "Split"}, {"pattern", regex}, {"behavior", "Removed"}, {"invert", false}}));
  expect_refused("invert is not supported", with_split({{"type", "Split"}, {"pattern", regex}, {"behavior", "Isolated"}, {"invert", true}}));
  expect_refused("not a Regex", with_split({{"type", "Split"}, {"pattern", {{"String", "x"}}}, {"behavior", "Isolated"}, {"invert", false}}));
  expect_refused("'\\w'", with_split({{"type", "Split"}, {"pattern", {{"Regex", "\\w"}}}, {"behavior", "Isolated"}, {"invert", false}}));
  expect_refused("pre_tokenizer 'Sequence'", with_split({{"type", "Sequence"}, {"pretokenizers", Json::array()}}));
}

TEST(TokenizerRefusals, AnUnknownTokenThatCannotOccurIsHarmless) {
  Json json = tests::small_tokenizer();
  json["model"]["unk_token"] = "<|im_end|>";
  EXPECT_EQ(Tokenizer::parse(json.dump(), "tok.json").encode("abc"), (std::vector<std::int64_t>{257}));
}

TEST(TokenizerRefusals, DamageIsADataErrorThatNamesThePlace) {
  expect_refused("key 'model' is missing", [](Json& j) { j.erase("model"); });
  expect_refused("vocab must be an object", [](Json& j) { j["model"]["vocab"] = 3; });
  expect_refused("merges a list", [](Json& j) { j["model"].erase("merges"); });
  expect_refused("merge 0 = 'a' + 'Q9'", [](Json& j) { j["model"]["merges"][0] = {"a", "Q9"}; });
  expect_refused("merge 1 = 'a' + 'c'", [](Json& j) { j["model"]["merges"][1] = {"a", "c"}; });
  expect_refused("must be a pair of texts", [](Json& j) { j["model"]["merges"][0] = {"a", "b", "c"}; });
  expect_refused("must be a pair of texts", [](Json& j) { j["model"]["merges"][0] = 5; });
  expect_refused("one space between them", [](Json& j) { j["model"]["merges"][0] = "a b c"; });
  expect_refused("one space between them", [](Json& j) { j["model"]["merges"][0] = "ab"; });
  expect_refused("id of token 'ab' must be a whole number", [](Json& j) { j["model"]["vocab"]["ab"] = -1; });
  expect_refused("id of token 'ab' must be a whole number", [](Json& j) { j["model"]["vocab"]["ab"] = 1.5; });
  expect_refused("id of token 'ab' must be a whole number", [](Json& j) { j["model"]["vocab"]["ab"] = 1ull << 31; });
  expect_refused("two tokens have id 5", [](Json& j) { j["model"]["vocab"]["ab"] = 5; });
  expect_refused("content is empty", [](Json& j) { j["added_tokens"][0]["content"] = ""; });
  expect_refused("key 'id' is missing", [](Json& j) { j["added_tokens"][0].erase("id"); });
  expect_refused("key 'content' is missing", [](Json& j) { j["added_tokens"][0] = 3; });
  expect_refused("added_tokens must be a list", [](Json& j) { j["added_tokens"] = 3; });
  expect_refused("the vocabulary gives it 257", [](Json& j) { j["added_tokens"][0]["content"] = "abc"; });
  expect_refused("shares id 261", [](Json& j) { j["added_tokens"][0]["id"] = 261; });
  expect_refused("shares id 5", [](Json& j) { j["added_tokens"][0]["id"] = 5; });
  expect_refused("given twice", [](Json& j) { j["added_tokens"][0]["content"] = "<|im_end|>"; });
  expect_refused("normalizer must be an object", [](Json& j) { j["normalizer"] = "NFC"; });
  expect_refused("key 'type' is missing", [](Json& j) { j["decoder"] = Json::object(); });
  EXPECT_UQA_ERROR(Tokenizer::parse("[]", "tok.json"), ErrorCode::kData, "tok.json: must be a JSON object");
  EXPECT_UQA_ERROR(Tokenizer::parse("", "tok.json"), ErrorCode::kData, "tok.json is not valid JSON");
}

}  // namespace
}  // namespace uqa::format
