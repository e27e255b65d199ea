// data/questions/published.h - the questions inside UQABench's align files (column `text`, one JSON chat a row) as a
// question directory.
//
//   // uqa import --schema recipes/uqabench.schema.json --input align_data_train.arrow align_data_eval.arrow --output
//   data import_published_questions(Dataset::open("data"), {"align_data_train.arrow", "align_data_eval.arrow"},
//   "questions");
#pragma once

#include <cstdint>

#include "core/file.h"
#include "data/dataset.h"

namespace uqa::data {

struct PublishedQuestionFiles {
  fs::path train, eval;        ///< Arrow IPC; each row holds a user's history and one question about it
  std::int64_t first_row = 0;  ///< rows that the data set's import read before `train` (of files named earlier)
};

struct PublishedQuestionReport {
  std::int64_t num_train = 0, num_test = 0;
  std::int64_t without_user = 0;  ///< questions left out, since import left out their row (fewer than 2 interactions)
};

/// `data` must have been imported from the same files, `eval` directly after `train`, without a user column, so that a
/// user's id is the number of its row. A question keeps its text as it is (free-form: no separate options), its type is
/// the one that the official rules give, and its history is the latest `max_len` interactions of the row. The output is
/// read by read_questions; it carries no prior-only answerer. Throws Error(kData) naming file and row.
PublishedQuestionReport import_published_questions(const Dataset& data, const PublishedQuestionFiles& files,
                                                   const fs::path& output, bool overwrite = false,
                                                   std::int64_t max_len = 512);

}  // namespace uqa::data
