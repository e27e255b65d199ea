// core/hash.h - xxHash3 checksums (not cryptographic) of bytes and files, as hexadecimal text.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "core/file.h"

namespace uqa {

/// 64-bit XXH3 of `bytes`.
[[nodiscard]] std::uint64_t hash64(std::span<const std::byte> bytes, std::uint64_t seed = 0);
[[nodiscard]] std::uint64_t hash64(std::string_view text, std::uint64_t seed = 0);

/// 128-bit XXH3 as 32 hexadecimal digits.
[[nodiscard]] std::string hash_hex(std::span<const std::byte> bytes);
[[nodiscard]] std::string hash_hex(std::string_view text);
/// Same, of a file's content. Throws Error(kData).
[[nodiscard]] std::string hash_file(const fs::path& path);

}  // namespace uqa
