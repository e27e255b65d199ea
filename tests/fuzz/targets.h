// tests/fuzz/targets.h - what is fuzzed: each takes any bytes and returns, or throws uqa::Error, and checks what it got.
// Shared by the deterministic test and the libFuzzer programs.
#pragma once

#include <string_view>

namespace uqa::fuzz {

/// A safetensors file: every tensor of an accepted header lies inside the file and is read.
void safetensors(std::string_view bytes);
/// A tokenizer.json: an accepted one encodes and decodes texts with ids inside its vocabulary.
void tokenizer(std::string_view bytes);
/// A text for the tokenizer: what is accepted survives encode and decode (the byte alphabet is complete, without normalizer).
void tokenizer_text(std::string_view bytes);
/// A chat template: an accepted one renders a conversation.
void chat_template(std::string_view bytes);

}  // namespace uqa::fuzz
