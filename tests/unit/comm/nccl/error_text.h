// tests/unit/comm/nccl/error_text.h - the text of the uqa::Error that a call throws.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "core/error.h"

namespace uqa::testing {

/// What `body` throws: its one-line text, after checking the code.
template <typename Body>
std::string error_text(const Body& body, ErrorCode code) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

}  // namespace uqa::testing
