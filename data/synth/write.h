// data/synth/write.h - a generated log as a data directory (HDF5) or as files in the published layout (Arrow), streamed.
//
//   const Json report = data::synth::write_synth(config, {.output = "data/synth", .format = "hdf5"});
//   report["oracle"]["entropy_nats"]["mean"];   // what a perfect model's loss would be
#pragma once

#include <cstdint>
#include <string>

#include "core/file.h"
#include "core/json.h"
#include "data/synth/config.h"

namespace uqa::data::synth {

struct WriteOptions {
  fs::path output;
  std::string format = "hdf5";                ///< "hdf5": a data directory; "arrow": what `uqa import` reads
  bool overwrite = false;
  std::int64_t part_interactions = 500'000;   ///< of one shard or record batch: bounds memory; the content does not depend on it; > 0
  std::int64_t oracle_positions = 20'000;     ///< about so many positions measure entropy and best accuracy; 0: none
  bool progress = false;
};

/// Lengths of the histories: log-normal, at least 2, and exactly `interactions` in all. A stream in the order of users.
class Lengths {
 public:
  explicit Lengths(const SynthConfig& resolved);
  /// Length of the next user.
  [[nodiscard]] std::int64_t next();

 private:
  [[nodiscard]] double weight(std::int64_t user) const;
  std::int64_t users_, spare_;
  double sigma_;
  std::uint64_t key_;
  double total_ = 0, running_ = 0;
  std::int64_t user_ = 0, given_ = 0;
};

/// Writes the log; the directory appears whole or not at all. Memory: the process (process.h), 8 bytes a user and item, and some parts.
/// HDF5 and the import of the Arrow files have the same digest. Returns what generator.json holds: sizes, every setting, and
///   "oracle": entropy_nats, cross_entropy_nats (realised), accuracy of the best predictor for item, category, brand and shop; each with its
///   mean and standard error over users; a Monte-Carlo mean over positions of exact conditional values;
///   "popularity_entropy_nats": of items counted over the log: the loss of a model that knows only popularity.
/// Error(kConfig) about settings and the output, Error(kData) when it cannot be written.
Json write_synth(const SynthConfig& config, const WriteOptions& options);

/// The source schema that imports the Arrow files with their item file.
[[nodiscard]] Json arrow_schema(const SynthConfig& resolved);

}  // namespace uqa::data::synth
