// trainer/fit/accuracy_table.h - the accuracies of a study's points.csv (acc_<type>, acc_<type>_n), fitted against loss and sizes.
#pragma once

#include "core/json.h"
#include "trainer/fit/bootstrap.h"
#include "trainer/fit/points.h"

namespace uqa::fit {

/// One entry per column acc_<type> that has a column acc_<type>_n, over the runs where both are given; an empty list when there are none.
/// Sizes of the trend: N (the first convention), history length (max_len), LLM parameters (n_llm), those that the table has.
/// The column acc_<type>_users_effect, where there is one, says how much more an accuracy varies than independent questions would.
[[nodiscard]] Json fit_accuracies(const Table& table, const Runs& runs, const Columns& columns, double chance, const BootstrapOptions& options);

}  // namespace uqa::fit
