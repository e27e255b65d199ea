#include "tests/fuzz/targets.h"

#include <algorithm>
#include <span>

#include "core/error.h"
#include "models/format/chat.h"
#include "models/format/safetensors.h"
#include "models/format/tokenizer.h"
#include "tests/support/small_tokenizer.h"

namespace uqa::fuzz {

void safetensors(std::string_view bytes) {
  const auto file = std::as_bytes(std::span(bytes.data(), bytes.size()));
  const auto header = format::parse_safetensors(file, "fuzz");
  std::uint64_t total = 0;
  unsigned sum = 0;
  for (const auto& [name, info] : header.tensors) {
    UQA_CHECK(info.begin <= info.end && info.end <= file.size(), ErrorCode::kInternal, "tensor '{}' lies outside the file", name);
    std::uint64_t elements = 1;
    for (const std::int64_t size : info.shape) elements *= static_cast<std::uint64_t>(size);
    UQA_CHECK(elements * format::dtype_bytes(info.dtype) == info.end - info.begin, ErrorCode::kInternal, "tensor '{}' has another size", name);
    total += info.end - info.begin;
    for (const std::byte b : file.subspan(info.begin, info.end - info.begin)) sum += std::to_integer<unsigned>(b);
  }
  UQA_CHECK(total <= file.size() && sum <= 255 * total, ErrorCode::kInternal, "tensors of {} bytes overlap", total);
}

namespace {

void check_encoding(const format::Tokenizer& tokenizer, std::string_view text) {
  const auto ids = tokenizer.encode(text);
  const std::int64_t size = tokenizer.vocab_size();
  UQA_CHECK(std::all_of(ids.begin(), ids.end(), [&](std::int64_t id) { return id >= 0 && id < size; }), ErrorCode::kInternal,
            "an id lies outside the vocabulary of {}", size);
  static_cast<void>(tokenizer.decode(ids));
}

}  // namespace

void tokenizer(std::string_view bytes) {
  const auto tokenizer = format::Tokenizer::parse(bytes, "fuzz");
  for (const std::string_view text : {"", "abc abbc  It's 42!\n\n<|im_start|>user\n<|im_end|>", "e\u0301中文🧑\u200d Ａ①ﬁ \u0085", "aaaaaaaaaaaaaaaaaaaa"}) {
    check_encoding(tokenizer, text);
  }
  static_cast<void>(tokenizer.decode({-1, 0, 1, 255, 600, 1'000'000'000'000}, true));
}

void tokenizer_text(std::string_view bytes) {
  static const auto instance = format::Tokenizer::parse(tests::small_tokenizer().dump(), "small");
  check_encoding(instance, bytes);
  const auto ids = instance.encode(bytes);
  UQA_CHECK(instance.decode(ids) == bytes, ErrorCode::kInternal, "a text of {} bytes is not restored", bytes.size());
}

void chat_template(std::string_view bytes) {
  const auto chat = format::ChatFormat::parse(bytes, "fuzz");
  const std::string text = chat.render({{"user", "Q"}, {"assistant", "A"}}, true);
  UQA_CHECK(text.ends_with("<|im_start|>assistant\n"), ErrorCode::kInternal, "the generation prompt is missing");
}

}  // namespace uqa::fuzz
