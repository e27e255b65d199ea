// tests/dist/collective_cases.h - one test body for every transport: rank-dependent inputs, answers in closed form.
// Bodies use EXPECT_* only: an early return on one rank would hang the others.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace uqa::testing {

struct CollectiveCase {
  std::string name;
  void (*run)(const comm::Communicator& comm);
};

/// All of them.
[[nodiscard]] const std::vector<CollectiveCase>& collective_cases();
/// Its parts by source: tensors that move at once, works that are waited for later, groups and agreement.
[[nodiscard]] std::vector<CollectiveCase> tensor_cases();
[[nodiscard]] std::vector<CollectiveCase> started_cases();
[[nodiscard]] std::vector<CollectiveCase> group_cases();

/// Shown for a failing parameter.
inline void PrintTo(const CollectiveCase& c, std::ostream* out) { *out << c.name; }

}  // namespace uqa::testing
