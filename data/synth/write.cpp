#include "data/synth/write.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/progress.h"
#include "core/random.h"
#include "core/text.h"
#include "data/manifest.h"
#include "data/synth/oracle.h"
#include "data/synth/sinks.h"

namespace uqa::data::synth {
namespace {

/// The published columns, in their order.
struct Column {
  const char* name;
  const char* table;
  const char* group;  ///< the word in SynthConfig::features; null: always there
};
constexpr Column kColumns[] = {{"uni_seq_item_id", "item_id", nullptr},
                               {"uni_seq_cate_id", "cate_id", "cate"},
                               {"uni_seq_brand_id", "brand_id", "brand"},
                               {"uni_seq_shop_id", "shop_id", "shop"},
                               {"uni_seq_seller_id", "seller_id", "seller"},
                               {"uni_seq_title_bpe_token_ids", "bpe_tokens", "tokens"},
                               {"uni_seq_cate_bpe_token_ids", "bpe_tokens", "tokens"},
                               {"uni_seq_shop_bpe_token_ids", "bpe_tokens", "tokens"},
                               {"uni_seq_brand_bpe_token_ids", "bpe_tokens", "tokens"},
                               {"uni_seq_seller_bpe_token_ids", "bpe_tokens", "tokens"}};

bool is_bag(const std::string& table) { return table == "bpe_tokens"; }

std::int64_t rows_of(const SynthConfig& c, const std::string& table) {
  if (table == "item_id") return c.items;
  if (table == "cate_id") return c.categories;
  if (table == "brand_id") return c.brands;
  if (table == "bpe_tokens") return c.token_rows;
  return c.shops;  // sellers are as many
}

/// Cuts the stream of users into parts: after a user who fills one, and where the Arrow files change.
class Cutter {
 public:
  Cutter(const SynthConfig& c, const WriteOptions& options)
      : most_(options.part_interactions), users_(c.users), boundary_(options.format == "arrow" ? first_eval_user(c) : c.users) {}
  /// Whether a part ends with the user that has just been added.
  bool add(std::int64_t length) {
    ++user_;
    in_part_ += length;
    if (in_part_ < most_ && user_ != boundary_ && user_ != users_) return false;
    in_part_ = 0;
    return true;
  }

 private:
  std::int64_t most_, users_, boundary_, user_ = 0, in_part_ = 0;
};

ShardContent empty_part(const Schema& schema) {
  ShardContent part;
  part.features.resize(schema.features.size());
  for (std::size_t f = 0; f < schema.features.size(); ++f) {
    if (schema.features[f].multi_valued) part.features[f].offsets.push_back(0);
  }
  return part;
}

void add_user(ShardContent& part, const Catalog& catalog, const Schema& schema, std::int64_t user, std::span<const std::int32_t> history) {
  part.user_index.push_back(user);
  part.user_id.push_back(std::to_string(user));
  part.offsets.push_back(part.offsets.back() + static_cast<std::int64_t>(history.size()));
  for (std::size_t f = 0; f < schema.features.size(); ++f) {
    auto& column = part.features[f];
    const std::string& name = schema.features[f].name;
    const auto each = [&](auto&& visit) {
      for (const auto item : history) {
        visit(item);
        if (schema.features[f].multi_valued) column.offsets.push_back(static_cast<std::int64_t>(column.values.size()));
      }
    };
    const auto bag = [&](Catalog::Text text) { each([&](std::int32_t item) { catalog.tokens(text, item, column.values); }); };
    if (name == "uni_seq_item_id") each([&](std::int32_t item) { column.values.push_back(item); });
    if (name == "uni_seq_cate_id") each([&](std::int32_t item) { column.values.push_back(catalog.category(item)); });
    if (name == "uni_seq_brand_id") each([&](std::int32_t item) { column.values.push_back(catalog.brand(item)); });
    if (name == "uni_seq_shop_id") each([&](std::int32_t item) { column.values.push_back(catalog.shop(item)); });
    if (name == "uni_seq_seller_id") each([&](std::int32_t item) { column.values.push_back(catalog.seller(item)); });
    if (name == "uni_seq_title_bpe_token_ids") bag(Catalog::Text::kTitle);
    if (name == "uni_seq_cate_bpe_token_ids") bag(Catalog::Text::kCategory);
    if (name == "uni_seq_shop_bpe_token_ids") bag(Catalog::Text::kShop);
    if (name == "uni_seq_brand_bpe_token_ids") bag(Catalog::Text::kBrand);
    if (name == "uni_seq_seller_bpe_token_ids") bag(Catalog::Text::kSeller);
  }
}

double entropy_of_counts(const std::vector<std::int64_t>& counts, std::int64_t total) {
  double entropy = 0;
  for (const auto count : counts) {
    if (count == 0) continue;
    const double p = static_cast<double>(count) / static_cast<double>(total);
    entropy -= p * std::log(p);
  }
  return entropy;
}

}  // namespace

std::int64_t first_eval_user(const SynthConfig& resolved) { return resolved.users - resolved.users / 10; }

Schema schema_of(const SynthConfig& resolved) {
  Schema schema;
  for (const auto& column : kColumns) {
    if (column.group != nullptr && !resolved.has_feature(column.group)) continue;
    if (std::none_of(schema.tables.begin(), schema.tables.end(), [&](const auto& t) { return t.name == column.table; })) {
      schema.tables.push_back({.name = column.table, .rows = rows_of(resolved, column.table)});
    }
    schema.features.push_back({.name = column.name, .table = column.table, .multi_valued = is_bag(column.table)});
  }
  return schema;
}

Json arrow_schema(const SynthConfig& resolved) {
  const auto schema = schema_of(resolved);
  Json json{{"name", "synth"},
            {"layout", "user_rows"},
            {"format", "arrow"},
            {"items", {{"file", "items.arrow"}, {"id", "item_id"}, {"title", "title"}, {"attributes", {{{"name", "category"}}, {{"name", "brand"}}, {{"name", "shop"}}}}}},
            {"tables", Json::object()},
            {"features", Json::array()}};
  for (const auto& table : schema.tables) json["tables"][table.name] = table.rows;
  for (const auto& feature : schema.features) {
    Json entry{{"name", feature.name}, {"table", feature.table}};
    if (feature.multi_valued) entry["multi_valued"] = true;
    json["features"].push_back(std::move(entry));
  }
  return json;
}

Lengths::Lengths(const SynthConfig& resolved)
    : users_(resolved.users),
      spare_(resolved.interactions - 2 * resolved.users),
      sigma_(resolved.length_sigma),
      key_(stream_key(static_cast<std::uint64_t>(resolved.seed), "synth/length")) {
  for (std::int64_t u = 0; u < users_; ++u) total_ += weight(u);
}

double Lengths::weight(std::int64_t user) const {
  const auto bits = philox(key_, static_cast<std::uint64_t>(user));
  const auto unit = [&](std::size_t i) { return (static_cast<double>(bits[i]) + 0.5) * 0x1p-32; };
  return std::exp(sigma_ * std::sqrt(-2 * std::log(unit(0))) * std::cos(2 * std::numbers::pi * unit(1)));
}

std::int64_t Lengths::next() {
  UQA_CHECK(user_ < users_, ErrorCode::kInternal, "a length for user {} of {} was asked for", user_, users_);
  running_ += weight(user_++);
  const auto until = user_ == users_ ? spare_ : std::clamp(static_cast<std::int64_t>(static_cast<double>(spare_) * (running_ / total_)), given_, spare_);
  const auto extra = until - given_;
  given_ = until;
  return 2 + extra;
}

Json write_synth(const SynthConfig& unresolved, const WriteOptions& options) {
  const auto config = unresolved.resolve();
  UQA_CHECK(options.format == "hdf5" || options.format == "arrow", ErrorCode::kConfig, "--format = {}, must be hdf5 or arrow{}", options.format,
            suggestion(options.format, {"hdf5", "arrow"}));
  UQA_CHECK(options.part_interactions > 0, ErrorCode::kConfig, "--part_interactions = {}, must be above 0", options.part_interactions);
  UQA_CHECK(options.oracle_positions >= 0, ErrorCode::kConfig, "--oracle_positions = {}, must be 0 or more", options.oracle_positions);
  UQA_CHECK(options.format == "hdf5" || first_eval_user(config) < config.users, ErrorCode::kConfig,
            "users = {}, the Arrow files need at least 10: the last tenth is pretrain_data_eval.arrow; give more, or --format hdf5", config.users);
  OutputDir out(options.output, {.kind = options.format == "hdf5" ? kDataKind : "uqa.arrow", .overwrite = options.overwrite});

  const Process process(config);
  const auto schema = schema_of(config);
  std::int64_t num_parts = 0;
  {
    Lengths lengths(config);
    Cutter cut(config, options);
    for (std::int64_t u = 0; u < config.users; ++u) num_parts += cut.add(lengths.next()) ? 1 : 0;
  }
  const auto sink = options.format == "hdf5" ? make_shard_sink(process, out.path(), num_parts) : make_arrow_sink(process, out.path());

  // Users of the oracle are spread evenly over all users.
  const double mean_length = static_cast<double>(config.interactions) / static_cast<double>(config.users);
  const auto oracle_users =
      options.oracle_positions == 0 ? 0 : std::clamp<std::int64_t>(std::llround(static_cast<double>(options.oracle_positions) / mean_length), std::min<std::int64_t>(30, config.users), config.users);
  const auto taken = [&](std::int64_t u) { return static_cast<std::int64_t>(static_cast<double>(u) / static_cast<double>(config.users) * static_cast<double>(oracle_users)); };
  Oracle oracle(process);
  std::vector<std::int64_t> clicks(static_cast<std::size_t>(config.items), 0);
  std::vector<std::int32_t> history;
  Lengths lengths(config);
  Cutter cut(config, options);
  Progress progress("synth", config.interactions, "interactions", options.progress);
  auto part = empty_part(schema);
  for (std::int64_t u = 0; u < config.users; ++u) {
    const auto length = lengths.next();
    process.history(u, length, history);
    for (const auto item : history) ++clicks[static_cast<std::size_t>(item)];
    if (oracle_users > 0 && (u == 0 || taken(u) > taken(u - 1))) oracle.add_user(history);
    add_user(part, process.catalog(), schema, u, history);
    if (cut.add(length)) {
      progress.advance(part.offsets.back());
      sink->write(part);
      part = empty_part(schema);
    }
  }
  progress.finish();

  Json report{{"format", "uqa.synth"}, {"version", 1}, {"config", config.to_json()}, {"popularity_entropy_nats", entropy_of_counts(clicks, config.interactions)}};
  if (oracle_users > 0) report["oracle"] = oracle.to_json();
  sink->finish(report);
  out.commit();
  return report;
}

}  // namespace uqa::data::synth
