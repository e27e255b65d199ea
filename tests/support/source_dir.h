// tests/support/source_dir.h - where this checkout lies. Its path is compiled into one file alone, so that the others are the same in
// every clone and come out of one compiler cache.
#pragma once

#include <filesystem>

namespace uqa::tests {

/// The root of the source tree that the tests were built from.
[[nodiscard]] std::filesystem::path source_dir();

}  // namespace uqa::tests
