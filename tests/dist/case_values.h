// tests/dist/case_values.h - inputs and comparisons that the collective cases share.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "comm/communicator.h"

namespace uqa::testing {

using at::Tensor;

inline constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kBFloat16, at::kLong};
inline constexpr std::int64_t kSizes[] = {0, 1, 7, 1000, 70'001};

/// a[i] = i % 13 - 6, exact in every dtype.
inline Tensor pattern(std::int64_t size, at::ScalarType dtype) {
  return (at::arange(size, at::kLong).remainder(13) - 6).to(dtype);
}

inline void expect_equal(const Tensor& got, const Tensor& want) {
  EXPECT_EQ(got.sizes(), want.sizes());
  EXPECT_EQ(got.scalar_type(), want.scalar_type());
  EXPECT_TRUE(got.sizes() == want.sizes() && got.scalar_type() == want.scalar_type() && at::equal(got, want));
}

/// The agreed error of `body`, which must be thrown on every rank.
template <typename Body>
std::pair<ErrorCode, std::string> agreed_error(Body body) {
  try {
    body();
  } catch (const comm::AgreedError& error) {
    return {error.code(), error.what()};
  }
  ADD_FAILURE() << "no AgreedError was thrown";
  return {ErrorCode::kInternal, ""};
}

}  // namespace uqa::testing
