// A small data set with a pattern to learn, made through the importer, and settings that train on it in a second.
#pragma once

#include <string>

#include "core/file.h"
#include "core/random.h"
#include "data/import/import.h"
#include "trainer/pretrain.h"

namespace uqa::trainer::test {

/// Imports 45 users of uneven length (3 to 23 interactions) over 30 items into `directory` / "data". Each user steps through the catalogue
/// by a stride of their own, with some noise; every item has none to three tags.
inline fs::path write_tiny_data(const fs::path& directory) {
  std::string csv = "user,item,tags,time\n";
  PhiloxStream random(stream_key(5, "tiny data"));
  for (int user = 0; user < 45; ++user) {
    const auto length = 3 + random.below(21);
    std::uint64_t item = random.below(30);
    for (std::uint64_t t = 0; t < length; ++t) {
      std::string tags;
      for (std::uint64_t tag = 0; tag < item % 4; ++tag) tags += fmt::format("{}t{}", tags.empty() ? "" : " ", (item + tag * 3) % 7);
      csv += fmt::format("u{},i{},{},{}\n", user, item, tags, 1000 + t);
      item = random.below(10) == 0 ? random.below(30) : (item + 1 + static_cast<std::uint64_t>(user % 3)) % 30;
    }
  }
  write_file_atomic(directory / "log.csv", csv);
  const auto schema = data::SourceSchema::from_json(
      Json{{"name", "tiny"},
           {"layout", "events"},
           {"format", "csv"},
           {"interactions", {{"user", "user"}, {"item", "item"}, {"time", "time"}}},
           {"features", {{{"name", "item_id"}, {"table", "item_id"}},
                         {{"name", "tags"}, {"table", "tag"}, {"column", "tags"}, {"separator", " "}}}}},
      "tiny schema");
  data::import::ImportOptions options;
  options.inputs = {directory / "log.csv"};
  options.output = directory / "data";
  options.overwrite = true;
  static_cast<void>(data::import::run_import(schema, options));
  return options.output;
}

/// Two layers of width 16 with dropout on.
inline PretrainConfig tiny_config(const fs::path& data, const std::string& encoder) {
  PretrainConfig config;
  config.data = data.string();
  config.model.encoder = encoder;
  config.model.hidden = 16;
  config.model.inner = 24;
  config.model.ffn_multiple_of = 8;
  config.model.max_len = 12;
  config.model.item_dim = 8;
  config.model.feature_dim = 4;
  config.eval_users = 7;
  config.loop.batch.global_users = 8;
  config.loop.optim.peak_lr = 5e-3;
  config.loop.train.epochs = 3;
  config.loop.train.log_every_steps = 1;
  config.loop.train.num_threads = 1;
  return config;
}

}  // namespace uqa::trainer::test
