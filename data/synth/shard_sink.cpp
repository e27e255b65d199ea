#include "core/hash.h"
#include "data/digest.h"
#include "data/manifest.h"
#include "data/synth/sinks.h"

namespace uqa::data::synth {
namespace {

class ShardSink final : public Sink {
 public:
  ShardSink(const Process& process, fs::path directory, std::int64_t num_parts)
      : process_(process),
        directory_(std::move(directory)),
        manifest_{.name = "synth", .schema = schema_of(process.config()), .has_timestamps = false, .source_hash = hash_hex(process.config().to_json().dump()), .items = kItemsName},
        num_parts_(num_parts) {}

  void write(const ShardContent& part) override {
    const auto shard = static_cast<std::int64_t>(manifest_.shards.size());
    const auto name = shard_name(shard);
    write_shard(directory_ / name, manifest_.schema, part, {.source_hash = manifest_.source_hash, .shard = shard, .num_shards = num_parts_});
    for (std::size_t i = 0; i < part.user_index.size(); ++i) user_digests_.push_back(digest_user(part, manifest_.schema, i, buffer_));
    manifest_.shards.push_back(name);
    manifest_.num_users += static_cast<std::int64_t>(part.user_index.size());
    manifest_.num_interactions += part.offsets.back();
    list(name);
  }

  void finish(Json& report) override {
    UQA_CHECK(static_cast<std::int64_t>(manifest_.shards.size()) == num_parts_, ErrorCode::kInternal, "{} shards were written, {} were expected",
              manifest_.shards.size(), num_parts_);
    const auto catalog = process_.catalog().item_catalog();
    write_items(directory_ / kItemsName, catalog, process_.config().items, manifest_.source_hash);
    list(kItemsName);
    manifest_.digest = digest_data(manifest_.schema, catalog, false, user_digests_);
    report["digest"] = manifest_.digest;
    write_file_atomic(directory_ / "generator.json", report.dump(2) + "\n");
    list("generator.json");
    manifest_.report = {{"num_users", manifest_.num_users},
                        {"num_interactions", manifest_.num_interactions},
                        {"num_items", process_.config().items},
                        {"dropped_users", 0},
                        {"num_shards", num_parts_},
                        {"digest", manifest_.digest},
                        {"generator", report}};
    write_manifest(directory_, manifest_);
  }

 private:
  void list(const std::string& name) {
    const fs::path path = directory_ / name;
    manifest_.files.push_back({.name = name, .size_bytes = static_cast<std::int64_t>(fs::file_size(path)), .xxh128 = hash_file(path)});
  }

  const Process& process_;
  fs::path directory_;
  Manifest manifest_;
  std::int64_t num_parts_;
  std::vector<std::int64_t> user_digests_;
  std::string buffer_;
};

}  // namespace

std::unique_ptr<Sink> make_shard_sink(const Process& process, const fs::path& directory, std::int64_t num_parts) {
  return std::make_unique<ShardSink>(process, directory, num_parts);
}

}  // namespace uqa::data::synth
