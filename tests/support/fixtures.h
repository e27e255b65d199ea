// tests/support/fixtures.h - where the golden cases are: the environment variable UQA_FIXTURES, else the project's own copy.
#pragma once

#include <cstdlib>

#include "core/file.h"
#include "tests/support/source_dir.h"

namespace uqa::tests {

/// The fixture directory; a test fails on what it does not find there.
[[nodiscard]] inline fs::path fixtures() {
  const char* const given = std::getenv("UQA_FIXTURES");
  return given != nullptr && *given != '\0' ? fs::path(given) : source_dir() / "tests" / "fixtures";
}

}  // namespace uqa::tests
