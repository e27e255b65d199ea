#include "models/format/tokenizer.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "core/error.h"
#include "core/json.h"
#include "models/format/added_tokens.h"
#include "models/format/bpe.h"
#include "models/format/regex_split.h"
#include "models/format/utf8.h"

namespace uqa::format {
namespace {

constexpr std::size_t kMaxTextBytes = std::size_t{1} << 30;

/// The split that ByteLevel makes unless use_regex is false (GPT-2's).
constexpr std::string_view kGpt2Split = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string shown(std::string_view text) {
  constexpr std::size_t kShown = 60;
  return std::string(text.substr(0, kShown)) + (text.size() > kShown ? "..." : "");
}

bool is_absent(const Json& object, const char* key) { return !object.contains(key) || object.at(key).is_null(); }

[[noreturn]] void refuse(const std::string& what, std::string_view feature, std::string_view supported) {
  UQA_FAIL(ErrorCode::kData, "{}: {} is not supported; supported: {}", what, feature, supported);
}

std::string type_of(const Json& part, const std::string& what, std::string_view name) {
  UQA_CHECK(part.is_object(), ErrorCode::kData, "{}: {} must be an object; the file is damaged", what, name);
  return get<std::string>(part, "type", fmt::format("{}: {}", what, name));
}

Bpe::Id to_id(const Json& value, const std::string& what, std::string_view token) {
  UQA_CHECK(value.is_number_unsigned() && value.get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<Bpe::Id>::max()},
            ErrorCode::kData, "{}: the id of token '{}' must be a whole number in [0, 2^31); the file is damaged", what, shown(token));
  return value.get<Bpe::Id>();
}

struct AddedToken {
  std::string content;
  Bpe::Id id = 0;
  bool special = false;
  bool normalized = false;
};

std::vector<AddedToken> read_added_tokens(const Json& json, const std::string& what) {
  std::vector<AddedToken> tokens;
  if (is_absent(json, "added_tokens")) return tokens;
  const Json& list = json.at("added_tokens");
  UQA_CHECK(list.is_array(), ErrorCode::kData, "{}: added_tokens must be a list; the file is damaged", what);
  for (const auto& entry : list) {
    AddedToken token;
    const std::string where = what + ": added token";
    token.content = get<std::string>(entry, "content", where);
    UQA_CHECK(!token.content.empty(), ErrorCode::kData, "{}: content is empty; the file is damaged", where);
    UQA_CHECK(entry.contains("id"), ErrorCode::kData, "{} '{}': key 'id' is missing; the file is damaged", where, shown(token.content));
    token.id = to_id(entry.at("id"), what, token.content);
    token.special = get_or<bool>(entry, "special", false, where);
    token.normalized = get_or<bool>(entry, "normalized", !token.special, where);
    for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
      if (get_or<bool>(entry, flag, false, where)) {
        refuse(what, fmt::format("{} of added token '{}'", flag, shown(token.content)), "false");
      }
    }
    tokens.push_back(std::move(token));
  }
  return tokens;
}

std::pair<std::string, std::string> read_merge(const Json& merge, std::size_t rank, const std::string& what) {
  if (merge.is_string()) {
    const auto& text = merge.get_ref<const std::string&>();
    const auto space = text.find(' ');
    UQA_CHECK(space != std::string::npos && text.find(' ', space + 1) == std::string::npos, ErrorCode::kData,
              "{}: merge {} = '{}', must be two tokens with one space between them; the file is damaged", what, rank, shown(text));
    return {text.substr(0, space), text.substr(space + 1)};
  }
  UQA_CHECK(merge.is_array() && merge.size() == 2 && merge.at(0).is_string() && merge.at(1).is_string(), ErrorCode::kData,
            "{}: merge {} must be a pair of texts; the file is damaged", what, rank);
  return {merge.at(0).get<std::string>(), merge.at(1).get<std::string>()};
}

Bpe read_model(const Json& json, const std::string& what) {
  UQA_CHECK(json.contains("model"), ErrorCode::kData, "{}: key 'model' is missing; it is not a tokenizer.json", what);
  const Json& model = json.at("model");
  const std::string where = what + ": model";
  if (const auto type = type_of(model, what, "model"); type != "BPE") refuse(what, fmt::format("model '{}'", shown(type)), "BPE");
  if (!is_absent(model, "dropout") && model.at("dropout") != 0.0) refuse(where, "dropout", "null");
  if (get_or<bool>(model, "byte_fallback", false, where)) refuse(where, "byte_fallback", "false (byte-level vocabularies have no need of it)");
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!get_or<std::string>(model, affix, "", where).empty()) refuse(where, affix, "null or empty");
  }
  UQA_CHECK(model.contains("vocab") && model.at("vocab").is_object() && model.contains("merges") && model.at("merges").is_array(),
            ErrorCode::kData, "{}: vocab must be an object and merges a list; the file is damaged", where);
  std::unordered_map<std::string, Bpe::Id> vocab;
  vocab.reserve(model.at("vocab").size());
  std::unordered_set<Bpe::Id> used;
  for (const auto& [token, value] : model.at("vocab").items()) {
    const Bpe::Id id = to_id(value, where, token);
    UQA_CHECK(used.insert(id).second, ErrorCode::kData, "{}: two tokens have id {}, one of them '{}'; the file is damaged", where, id,
              shown(token));
    vocab.emplace(token, id);
  }
  std::vector<std::pair<std::string, std::string>> merges;
  merges.reserve(model.at("merges").size());
  for (const auto& merge : model.at("merges")) merges.push_back(read_merge(merge, merges.size(), where));
  Bpe bpe(std::move(vocab), merges, {.ignore_merges = get_or<bool>(model, "ignore_merges", false, where)}, where);
  if (!is_absent(model, "unk_token") && !bpe.has_every_byte()) {
    refuse(where, "unk_token with a vocabulary that lacks some bytes", "null, or a vocabulary with all 256 bytes");
  }
  return bpe;
}

bool read_normalizer(const Json& json, const std::string& what) {
  if (is_absent(json, "normalizer")) return false;
  const auto type = type_of(json.at("normalizer"), what, "normalizer");
  if (type != "NFC") refuse(what, fmt::format("normalizer '{}'", shown(type)), "NFC or none");
  return true;
}

/// Appends the splits of one pre-tokenizer; `byte_level` is set by the one that maps to bytes, which must be the last.
void read_pre_tokenizer(const Json& part, const std::string& what, std::vector<RegexSplit>& splits, bool& byte_level, bool nested) {
  constexpr std::string_view kSupported = "ByteLevel, Digits, Split (Regex, Isolated), and one Sequence of them that ends in ByteLevel";
  const auto type = type_of(part, what, "pre_tokenizer");
  const std::string where = fmt::format("{}: pre_tokenizer {}", what, shown(type));
  if (byte_level) refuse(what, fmt::format("pre_tokenizer '{}' after ByteLevel", shown(type)), kSupported);
  if (type == "Sequence" && !nested) {
    UQA_CHECK(part.contains("pretokenizers") && part.at("pretokenizers").is_array(), ErrorCode::kData,
              "{}: pretokenizers must be a list; the file is damaged", where);
    for (const auto& inner : part.at("pretokenizers")) read_pre_tokenizer(inner, what, splits, byte_level, true);
  } else if (type == "Digits") {
    splits.emplace_back(get_or<bool>(part, "individual_digits", false, where) ? R"(\p{N})" : R"(\p{N}+)", where);
  } else if (type == "Split") {
    if (!part.contains("pattern") || !part.at("pattern").is_object() || !part.at("pattern").contains("Regex")) {
      refuse(where, "a pattern that is not a Regex", kSupported);
    }
    if (const auto behavior = get<std::string>(part, "behavior", where); behavior != "Isolated") {
      refuse(where, fmt::format("behavior '{}'", shown(behavior)), "Isolated");
    }
    if (get_or<bool>(part, "invert", false, where)) refuse(where, "invert", "false");
    splits.emplace_back(get<std::string>(part.at("pattern"), "Regex", where), where);
  } else if (type == "ByteLevel") {
    if (get_or<bool>(part, "add_prefix_space", true, where)) refuse(where, "add_prefix_space", "false");
    if (get_or<bool>(part, "use_regex", true, where)) splits.emplace_back(kGpt2Split, where);
    byte_level = true;
  } else {
    refuse(what, fmt::format("pre_tokenizer '{}'", shown(type)), kSupported);
  }
}

std::vector<RegexSplit> read_pre_tokenizers(const Json& json, const std::string& what) {
  std::vector<RegexSplit> splits;
  bool byte_level = false;
  if (!is_absent(json, "pre_tokenizer")) read_pre_tokenizer(json.at("pre_tokenizer"), what, splits, byte_level, false);
  if (!byte_level) refuse(what, "a pre_tokenizer without ByteLevel", "byte-level BPE");
  return splits;
}

void check_decoder(const Json& json, const std::string& what) {
  if (is_absent(json, "decoder")) refuse(what, "a tokenizer without decoder", "ByteLevel");
  const auto type = type_of(json.at("decoder"), what, "decoder");
  if (type != "ByteLevel") refuse(what, fmt::format("decoder '{}'", shown(type)), "ByteLevel");
}

}  // namespace

struct Tokenizer::Impl {
  Impl(Bpe model, std::vector<RegexSplit> pre_tokenizers) : bpe(std::move(model)), splits(std::move(pre_tokenizers)) {}

  struct Decoded {
    std::string bytes;
    bool special = false;
  };

  Bpe bpe;
  std::vector<RegexSplit> splits;
  bool nfc = false;
  LiteralMatcher raw_added;         // looked for in the text as it is
  LiteralMatcher normalized_added;  // looked for after normalization
  std::unordered_map<std::string, std::int64_t> added_ids;
  std::unordered_map<std::int64_t, Decoded> decoded;
  std::int64_t highest_id = -1;

  void add(const AddedToken& token, const std::string& what) {
    const Bpe::Id in_vocab = bpe.find(token.content);
    UQA_CHECK(in_vocab == Bpe::kNone || in_vocab == token.id, ErrorCode::kData,
              "{}: added token '{}' has id {} but the vocabulary gives it {}; the file is damaged", what, shown(token.content), token.id,
              in_vocab);
    const bool new_text = added_ids.emplace(token.content, token.id).second;
    UQA_CHECK(new_text && (in_vocab != Bpe::kNone || !decoded.contains(token.id)), ErrorCode::kData,
              "{}: added token '{}' is given twice or shares id {} with another token; the file is damaged", what, shown(token.content),
              token.id);
    // A normalized token is looked for, and comes back, in its normalized form.
    std::string content = token.normalized && nfc ? to_nfc(token.content) : token.content;
    decoded[token.id] = {token_bytes(content), token.special};
    (token.normalized ? normalized_added : raw_added).add(std::move(content), token.id);
    highest_id = std::max<std::int64_t>(highest_id, token.id);
  }

  void encode_pieces(std::string_view text, std::size_t split_index, std::vector<std::int64_t>& ids) const {
    if (split_index == splits.size()) {
      bpe.encode_piece(text, ids);
      return;
    }
    splits[split_index].for_each_piece(text, [&](std::string_view piece) { encode_pieces(piece, split_index + 1, ids); });
  }

  void encode_plain(std::string_view text, std::vector<std::int64_t>& ids) const {
    const std::string normalized = nfc ? to_nfc(text) : std::string();
    normalized_added.split(
        nfc ? std::string_view(normalized) : text, [&](std::string_view gap) { encode_pieces(gap, 0, ids); },
        [&](std::int64_t id) { ids.push_back(id); });
  }
};

Tokenizer Tokenizer::load(const fs::path& tokenizer_json) { return parse(read_file(tokenizer_json), tokenizer_json.string()); }

Tokenizer Tokenizer::parse(std::string_view text, const std::string& what) {
  const Json json = parse_json(text, what);
  UQA_CHECK(json.is_object(), ErrorCode::kData, "{}: must be a JSON object; it is not a tokenizer.json", what);
  for (const char* key : {"truncation", "padding"}) {
    if (!is_absent(json, key)) refuse(what, key, "null");
  }
  check_decoder(json, what);
  const bool nfc = read_normalizer(json, what);
  auto impl = std::make_shared<Impl>(read_model(json, what), read_pre_tokenizers(json, what));
  impl->nfc = nfc;
  for (const auto& [token, id] : impl->bpe.vocab()) {
    impl->decoded[id] = {token_bytes(token), false};
    impl->highest_id = std::max<std::int64_t>(impl->highest_id, id);
  }
  for (const auto& token : read_added_tokens(json, what)) impl->add(token, what);
  Tokenizer tokenizer;
  tokenizer.impl_ = std::move(impl);
  return tokenizer;
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view text) const {
  UQA_CHECK(text.size() <= kMaxTextBytes, ErrorCode::kData, "text to tokenize = {} bytes, must be at most {}; split it", text.size(),
            kMaxTextBytes);
  const std::size_t invalid = find_invalid_utf8(text);
  UQA_CHECK(invalid == std::string_view::npos, ErrorCode::kData,
            "text to tokenize is not valid UTF-8 at byte {} of {}; convert the data to UTF-8", invalid, text.size());
  std::vector<std::int64_t> ids;
  impl_->raw_added.split(
      text, [&](std::string_view gap) { impl_->encode_plain(gap, ids); }, [&](std::int64_t id) { ids.push_back(id); });
  return ids;
}

std::string Tokenizer::decode(const std::vector<std::int64_t>& ids, bool skip_special) const {
  std::string bytes;
  for (const std::int64_t id : ids) {
    const auto found = impl_->decoded.find(id);
    if (found == impl_->decoded.end() || (skip_special && found->second.special)) continue;
    bytes += found->second.bytes;
  }
  return to_valid_utf8(bytes);
}

std::int64_t Tokenizer::token_id(std::string_view token) const {
  const auto added = impl_->added_ids.find(std::string(token));
  return added != impl_->added_ids.end() ? added->second : impl_->bpe.find(token);
}

std::int64_t Tokenizer::vocab_size() const { return impl_->highest_id + 1; }

}  // namespace uqa::format
