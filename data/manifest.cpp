#include "data/manifest.h"

#include <algorithm>

#include "core/hash.h"

namespace uqa::data {
namespace {

constexpr const char* kManifestName = "manifest.json";

/// Names come from a file: they must not lead out of the directory.
void check_name(const std::string& name, const std::string& what) {
  UQA_CHECK(!name.empty() && name.find('/') == std::string::npos && name != "." && name != "..", ErrorCode::kData,
            "{}: file name '{}' is not a plain name", what, name);
}

}  // namespace

void write_manifest(const fs::path& directory, const Manifest& manifest) {
  Json body = {{"format", kDataKind},
               {"format_version", kFormatVersion},
               {"name", manifest.name},
               {"schema", manifest.schema.to_json()},
               {"num_users", manifest.num_users},
               {"num_interactions", manifest.num_interactions},
               {"has_timestamps", manifest.has_timestamps},
               {"digest", manifest.digest},
               {"source_hash", manifest.source_hash},
               {"report", manifest.report},
               {"shards", manifest.shards},
               {"items", manifest.items},
               {"files", Json::array()}};
  for (const auto& file : manifest.files) {
    body["files"].push_back({{"name", file.name}, {"size_bytes", file.size_bytes}, {"xxh128", file.xxh128}});
  }
  const Json whole = {{"manifest", body}, {"xxh128", hash_hex(body.dump())}};
  write_file_atomic(directory / kManifestName, whole.dump(2) + "\n");
}

Manifest read_manifest(const fs::path& directory) {
  const fs::path path = directory / kManifestName;
  std::error_code ec;
  UQA_CHECK(fs::is_regular_file(path, ec), ErrorCode::kData,
            "{} is not a data directory: it has no {}; give a directory written by `uqa import` or `uqa synth`", directory.string(),
            kManifestName);
  const std::string what = path.string();
  const Json whole = read_json(path);
  const Json body = get<Json>(whole, "manifest", what);
  UQA_CHECK(get<std::string>(whole, "xxh128", what) == hash_hex(body.dump()), ErrorCode::kData,
            "{} does not have the checksum stored in it; it was changed or damaged: import the data again", what);
  UQA_CHECK(get<std::string>(body, "format", what) == kDataKind, ErrorCode::kData, "{}: format is '{}', must be '{}'", what,
            get<std::string>(body, "format", what), kDataKind);
  const auto version = get<std::int64_t>(body, "format_version", what);
  UQA_CHECK(version == kFormatVersion, ErrorCode::kData, "{}: format_version = {}, this program reads {}; import the data again", what, version,
            kFormatVersion);
  Manifest manifest{.name = get<std::string>(body, "name", what),
                    .schema = Schema::from_json(get<Json>(body, "schema", what), what),
                    .num_users = get<std::int64_t>(body, "num_users", what),
                    .num_interactions = get<std::int64_t>(body, "num_interactions", what),
                    .has_timestamps = get<bool>(body, "has_timestamps", what),
                    .digest = get<std::string>(body, "digest", what),
                    .source_hash = get<std::string>(body, "source_hash", what),
                    .report = get<Json>(body, "report", what),
                    .shards = get<std::vector<std::string>>(body, "shards", what),
                    .items = get<std::string>(body, "items", what),
                    .files = {}};
  for (const auto& file : get<Json>(body, "files", what)) {
    manifest.files.push_back({.name = get<std::string>(file, "name", what),
                              .size_bytes = get<std::int64_t>(file, "size_bytes", what),
                              .xxh128 = get<std::string>(file, "xxh128", what)});
    check_name(manifest.files.back().name, what);
  }
  const auto listed = [&](const std::string& name) {
    return std::any_of(manifest.files.begin(), manifest.files.end(), [&](const auto& file) { return file.name == name; });
  };
  for (const auto& shard : manifest.shards) UQA_CHECK(listed(shard), ErrorCode::kData, "{}: shard '{}' is not among the files", what, shard);
  UQA_CHECK(listed(manifest.items), ErrorCode::kData, "{}: items file '{}' is not among the files", what, manifest.items);
  return manifest;
}

void verify_files(const fs::path& directory, const Manifest& manifest, bool checksums) {
  for (const auto& file : manifest.files) {
    const fs::path path = directory / file.name;
    std::error_code ec;
    UQA_CHECK(fs::is_regular_file(path, ec), ErrorCode::kData, "{} is missing; import the data again", path.string());
    const auto size = static_cast<std::int64_t>(fs::file_size(path, ec));
    UQA_CHECK(!ec && size == file.size_bytes, ErrorCode::kData, "{} has {} bytes, the manifest says {}; it was cut or changed: import the data again",
              path.string(), size, file.size_bytes);
    UQA_CHECK(!checksums || hash_file(path) == file.xxh128, ErrorCode::kData,
              "{} does not have the checksum that the manifest gives; it is damaged: import the data again", path.string());
  }
}

}  // namespace uqa::data
