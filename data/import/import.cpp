#include "data/import/import.h"

#include <algorithm>
#include <exception>
#include <filesystem>
#include <optional>
#include <set>

#include "core/hash.h"
#include "core/log.h"
#include "core/progress.h"
#include "data/digest.h"
#include "data/import/pass1.h"
#include "data/manifest.h"

namespace uqa::data::import {
namespace {

constexpr std::int64_t kInputBytesPerShard = std::int64_t{256} << 20;
constexpr int kMaxShards = 4096;

void check_options(const SourceSchema& schema, const ImportOptions& options) {
  UQA_CHECK(options.size >= 1 && options.rank >= 0 && options.rank < options.size, ErrorCode::kInternal, "rank = {} of size = {}, must be inside",
            options.rank, options.size);
  UQA_CHECK(options.num_shards >= 0 && options.num_shards <= kMaxShards, ErrorCode::kConfig, "num_shards = {}, must be in [0, {}]; 0 chooses",
            options.num_shards, kMaxShards);
  UQA_CHECK(!options.inputs.empty(), ErrorCode::kConfig, "there is no input file; give at least one with --input");
  UQA_CHECK(!options.output.empty(), ErrorCode::kConfig, "there is no output directory; give one with --output");
  std::set<fs::path> seen;
  bool interactions = false;
  for (const auto& path : options.inputs) {
    std::error_code ec;
    UQA_CHECK(fs::is_regular_file(path, ec), ErrorCode::kData, "input {} is not a file; give the path of an existing one", path.string());
    UQA_CHECK(seen.insert(fs::weakly_canonical(path)).second, ErrorCode::kConfig, "input {} is given twice; give it once", path.string());
    interactions = interactions || !schema.is_item_file(path);
  }
  UQA_CHECK(interactions, ErrorCode::kConfig, "all inputs are item files ('{}'); add the file of interactions to --input",
            schema.items ? schema.items->file : "");
}

/// Where OutputDir lets files be written until it is published; every rank must know.
fs::path staging_of(const fs::path& output) {
  const fs::path plain = output.has_filename() ? output : output.parent_path();
  return fs::path(plain).concat(".tmp");
}

std::int64_t choose_num_shards(const ImportOptions& options) {
  if (options.num_shards > 0) return options.num_shards;
  std::int64_t bytes = 0;
  for (const auto& path : options.inputs) bytes += static_cast<std::int64_t>(fs::file_size(path));
  return std::clamp<std::int64_t>(bytes / kInputBytesPerShard + 1, options.size, std::max(options.size, kMaxShards));
}

void say(const ImportReport& report) {
  if (report.dropped_users > 0) {
    log::warn("import", "{} users with fewer than 2 interactions are left out ({} interactions)", report.dropped_users, report.dropped_interactions);
  }
  if (report.items_without_row > 0) {
    log::warn("import", "{} items of the interactions have no row in the item file: they have their id as title and no attributes",
              report.items_without_row);
  }
  if (report.unused_item_rows > 0) {
    log::info("import", "{} rows of the item file describe items that occur in no interaction: left out", report.unused_item_rows);
  }
}

/// Runs `body` and lets all ranks fail together when it fails on one.
template <typename F>
void agreed(const ImportOptions& options, F&& body) {
  std::optional<Error> error;
  try {
    body();
  } catch (const Error& e) {
    error = e;
  } catch (const fs::filesystem_error& e) {
    error = Error(ErrorCode::kData, e.what());
  } catch (const std::exception& e) {
    error = Error(ErrorCode::kInternal, e.what());
  }
  if (options.agree) options.agree(error ? &*error : nullptr);
  if (error) throw *error;
}

/// Rank 0, last: everything but the shards, then the directory becomes visible.
void publish(const SourceSchema& schema, Pass1& pass1, const fs::path& spill, OutputDir& out) {
  const auto& handover = pass1.handover;
  auto& report = pass1.report;
  write_items(out.path() / kItemsName, pass1.catalog, report.num_items, handover.source_hash);
  report.digest = digest_data(handover.schema, pass1.catalog, handover.has_timestamps,
                             read_user_digests(spill, handover.num_shards, report.num_users));
  fs::remove_all(spill);
  Manifest manifest{.name = schema.name,
                    .schema = handover.schema,
                    .num_users = report.num_users,
                    .num_interactions = report.num_interactions,
                    .has_timestamps = handover.has_timestamps,
                    .digest = report.digest,
                    .source_hash = handover.source_hash,
                    .report = report.to_json(),
                    .shards = {},
                    .items = kItemsName,
                    .files = {}};
  const auto list = [&](const std::string& name) {
    const fs::path path = out.path() / name;
    manifest.files.push_back({.name = name, .size_bytes = static_cast<std::int64_t>(fs::file_size(path)), .xxh128 = hash_file(path)});
  };
  for (std::int64_t s = 0; s < handover.num_shards; ++s) {
    manifest.shards.push_back(shard_name(s));
    list(manifest.shards.back());
  }
  list(kItemsName);
  write_manifest(out.path(), manifest);
  out.commit();
}

}  // namespace

Json ImportReport::to_json() const {
  return {{"num_users", num_users},
          {"num_interactions", num_interactions},
          {"num_items", num_items},
          {"dropped_users", dropped_users},
          {"dropped_interactions", dropped_interactions},
          {"items_without_row", items_without_row},
          {"unused_item_rows", unused_item_rows},
          {"num_shards", num_shards},
          {"digest", digest}};
}

ImportReport ImportReport::from_json(const Json& json, const std::string& what) {
  return {.num_users = get<std::int64_t>(json, "num_users", what),
          .num_interactions = get<std::int64_t>(json, "num_interactions", what),
          .num_items = get<std::int64_t>(json, "num_items", what),
          .dropped_users = get<std::int64_t>(json, "dropped_users", what),
          .dropped_interactions = get<std::int64_t>(json, "dropped_interactions", what),
          .items_without_row = get<std::int64_t>(json, "items_without_row", what),
          .unused_item_rows = get<std::int64_t>(json, "unused_item_rows", what),
          .num_shards = get<std::int64_t>(json, "num_shards", what),
          .digest = get<std::string>(json, "digest", what)};
}

ImportReport run_import(const SourceSchema& schema, const ImportOptions& options) {
  const bool first = options.rank == 0;
  const fs::path staging = staging_of(options.output);
  const fs::path spill = staging / "spill";
  std::optional<OutputDir> out;
  std::optional<Pass1> pass1;

  agreed(options, [&] {
    check_options(schema, options);
    if (!first) return;
    out.emplace(options.output, OutputDirOptions{.kind = kDataKind, .overwrite = options.overwrite});
    UQA_CHECK(out->path() == staging, ErrorCode::kInternal, "output is staged in {}, expected {}", out->path().string(), staging.string());
    fs::create_directories(spill);
    pass1 = run_pass1(schema, options, choose_num_shards(options), spill);
    write_handover(spill / "handover.h5", pass1->handover);
  });

  agreed(options, [&] {
    const auto handover = read_handover(spill / "handover.h5");
    const std::int64_t mine = (handover.num_shards - options.rank + options.size - 1) / options.size;
    Progress bar("import: write", std::max<std::int64_t>(mine, 0), "shards", options.progress && first);
    for (std::int64_t s = options.rank; s < handover.num_shards; s += options.size) {
      write_one_shard(handover, s, spill, staging);
      bar.advance(1);
    }
    bar.finish();
  });

  agreed(options, [&] {
    if (!first) return;
    publish(schema, *pass1, spill, *out);
    say(pass1->report);
  });
  if (first) return pass1->report;
  return ImportReport::from_json(read_manifest(options.output).report, (options.output / "manifest.json").string());
}

}  // namespace uqa::data::import
