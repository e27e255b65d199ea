// tests/support/expect_error.h - EXPECT_UQA_ERROR(statement, code, "part of the message").
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"

namespace uqa::tests {

/// Runs `call` and expects uqa::Error of `code` whose one-line message contains `part`.
template <typename Call>
void expect_error(const Call& call, ErrorCode code, const std::string& part) {
  try {
    call();
    ADD_FAILURE() << "no error; expected one with '" << part << "'";
  } catch (const Error& e) {
    EXPECT_EQ(static_cast<int>(e.code()), static_cast<int>(code)) << e.what();
    EXPECT_THAT(e.what(), ::testing::HasSubstr(part));
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << "not one line: " << e.what();
  }
}

}  // namespace uqa::tests

#define EXPECT_UQA_ERROR(statement, code, part)                                        \
  do {                                                                                 \
    SCOPED_TRACE(#statement);                                                          \
    ::uqa::tests::expect_error([&] { static_cast<void>(statement); }, (code), (part)); \
  } while (false)
