// tests/golden/encoders/fixtures.h - where golden files lie, and how they are compared.
#pragma once

#include <cstdlib>
#include <string>

#include "core/file.h"
#include "models/packed.h"
#include "tests/support/source_dir.h"

namespace uqa::models::testing {

/// The directory in UQA_FIXTURES, else the project's own copy.
inline fs::path fixtures() {
  const char* directory = std::getenv("UQA_FIXTURES");
  return directory != nullptr ? fs::path(directory) : tests::source_dir() / "tests" / "fixtures";
}

/// Largest error over the largest magnitude expected.
inline double relative_error(const Tensor& actual, const Tensor& expected) {
  const auto difference = actual.detach().to(at::kDouble) - expected.to(at::kDouble);
  return difference.abs().max().item<double>() / expected.to(at::kDouble).abs().max().item<double>();
}

}  // namespace uqa::models::testing
