// tests/support/small_tokenizer.h - a byte-level tokenizer.json small enough to reason about; tests change single keys of it.
#pragma once

#include "core/json.h"
#include "models/format/bpe.h"

namespace uqa::tests {

/// Every byte is a token (id = byte value); merges, in order of rank: "a b" -> ab (256), "ab c" -> abc (257), "b c" -> bc (258),
/// "Ġ a" -> Ġa (259). Added tokens: <|im_start|> (260), <|im_end|> (261) and <|im_end|>> (262) special, "NOTE" (263) not special and
/// normalized. Pre-tokenizer ByteLevel with GPT-2's expression, no normalizer.
[[nodiscard]] inline Json small_tokenizer() {
  Json vocab = Json::object();
  for (std::size_t b = 0; b < 256; ++b) vocab[format::byte_alphabet().text[b]] = b;
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  vocab["bc"] = 258;
  vocab["Ġa"] = 259;
  const auto added = [](const char* content, int id, bool special) {
    return Json{{"content", content}, {"id", id}, {"special", special}, {"normalized", !special}, {"single_word", false},
                {"lstrip", false}, {"rstrip", false}};
  };
  const Json byte_level{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  return Json{{"version", "1.0"},
              {"truncation", nullptr},
              {"padding", nullptr},
              {"added_tokens", {added("<|im_start|>", 260, true), added("<|im_end|>", 261, true), added("<|im_end|>>", 262, true),
                                added("NOTE", 263, false)}},
              {"normalizer", nullptr},
              {"pre_tokenizer", byte_level},
              {"post_processor", nullptr},
              {"decoder", byte_level},
              {"model", {{"type", "BPE"},
                         {"dropout", nullptr},
                         {"unk_token", nullptr},
                         {"continuing_subword_prefix", nullptr},
                         {"end_of_word_suffix", nullptr},
                         {"fuse_unk", false},
                         {"byte_fallback", false},
                         {"ignore_merges", false},
                         {"vocab", vocab},
                         {"merges", Json::array({Json::array({"a", "b"}), Json::array({"ab", "c"}), Json::array({"b", "c"}),
                                                 Json::array({"Ġ", "a"})})}}}};
}

}  // namespace uqa::tests
