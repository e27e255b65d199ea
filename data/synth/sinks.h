// data/synth/sinks.h - where generated histories go, a part at a time.
#pragma once

#include <memory>

#include "data/shard.h"
#include "data/synth/process.h"

namespace uqa::data::synth {

/// Takes parts in the order of users. Error(kData) when one cannot be written.
class Sink {
 public:
  virtual ~Sink() = default;
  virtual void write(const ShardContent& part) = 0;
  /// Everything that is not histories; `report` gets what the sink knows.
  virtual void finish(Json& report) = 0;
};

/// What the columns mean: features in the published order.
[[nodiscard]] Schema schema_of(const SynthConfig& resolved);
/// HDF5 shards, catalogue and manifest; `num_parts` is known beforehand.
[[nodiscard]] std::unique_ptr<Sink> make_shard_sink(const Process& process, const fs::path& directory, std::int64_t num_parts);
/// pretrain_data_train.arrow, pretrain_data_eval.arrow (the last tenth of the users), items.arrow, schema.json.
[[nodiscard]] std::unique_ptr<Sink> make_arrow_sink(const Process& process, const fs::path& directory);
/// Users before this one are in the train file.
[[nodiscard]] std::int64_t first_eval_user(const SynthConfig& resolved);

}  // namespace uqa::data::synth
