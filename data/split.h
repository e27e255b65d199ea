// data/split.h - which interactions train a model, which validate it and which test it.
//
//   const auto splits = data::make_splits(dataset, data::parse_split("leave_one_out"), /*max_len=*/200);
//   const auto batch = data::pack(dataset, {splits.train[0]}, {0}, data::Targets::kNext);
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/batch.h"
#include "data/dataset.h"

namespace uqa::data {

enum class SplitKind { kLeaveOneOut, kRatio, kTime, kFiles };

/// A parsed split option.
struct SplitSpec {
  SplitKind kind = SplitKind::kLeaveOneOut;
  double train_share = 0.9;     ///< kRatio: share of the users that train; in (0, 1)
  std::uint64_t seed = 1;       ///< kRatio: chooses the users
  std::int64_t time_s = 0;      ///< kTime: seconds since the epoch; what happens at or after it is for testing
  std::vector<fs::path> files;  ///< kFiles: train, valid and optionally test; raw user ids, one a line
  bool operator==(const SplitSpec&) const = default;
};

/// Reads one of
///   leave_one_out              each user's last item tests, the one before validates, the rest trains
///   ratio:SHARE[:SEED]         SHARE of the users trains; half of the others validates (the larger half), half tests
///   time:SECONDS               a user's first item at or after SECONDS tests, the last one before validates, the rest before trains
///   files:TRAIN,VALID[,TEST]   text files of raw user ids, one a line
/// Throws Error(kConfig) naming the part that is wrong.
[[nodiscard]] SplitSpec parse_split(const std::string& text);

/// Spans by ascending user; a user has at most one span in each list.
struct Splits {
  /// At least 2 and at most max_len + 1 interactions each, the most recent ones that may train: what pack(kNext) turns into at
  /// most max_len inputs with their targets.
  std::vector<Span> train;
  /// Interaction `end - 1` is the target, [begin, end - 1) the at least 1 and at most max_len inputs.
  std::vector<Span> valid, test;
  std::int64_t users_without_train = 0;  ///< users that occur only in valid or test because too little is left to train on
  std::int64_t users_without_eval = 0;   ///< users that train but are too short to hold an item out (leave_one_out, time)
  std::int64_t users_left_out = 0;       ///< users in no list: named by no file, or with too few interactions
};

/// Applies `spec` to every user of `data`.
/// leave_one_out: with n >= 3 interactions the targets are n - 1 (test) and n - 2 (valid), training ends before n - 2 (so n = 3 leaves
/// nothing to train on); a user with n = 2 only trains.
/// time: with k interactions before the time and at least one after it, the test target is k if k >= 1; the valid target is k - 1 if
/// k >= 3, and training ends before it; with k = 2 both train.
/// Throws Error(kData): unknown raw id in a file, a user in two files, no timestamps for `time`, no user left to train on;
/// Error(kConfig): max_len < 1.
[[nodiscard]] Splits make_splits(const Dataset& data, const SplitSpec& spec, std::int64_t max_len);

/// Keeps round(fraction * n) of the n training spans, at least 1, chosen by `seed`; valid and test stay. For one seed the users of a
/// smaller fraction are among those of a larger one. Error(kConfig): fraction outside (0, 1].
void keep_train_fraction(Splits& splits, double fraction, std::uint64_t seed);

}  // namespace uqa::data
