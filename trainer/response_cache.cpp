#include "trainer/response_cache.h"

#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/hash.h"

namespace uqa::trainer {
namespace {

constexpr std::string_view kMagic = "uqa.responses 1\n";

/// One response on disk, native byte order.
struct Record {
  ResponseKey key;
  Response response;
};
static_assert(sizeof(Record) == 16 + 48 + 8);

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text.data(), text.size())); }

}  // namespace

ResponseKey ResponseKey::of(std::span<const std::byte> facts) { return {.high = hash64(facts, 1), .low = hash64(facts, 2)}; }

ResponseCache::ResponseCache(fs::path path) : path_(std::move(path)) {
  if (!fs::exists(path_)) return;
  const std::string content = read_file(path_);
  const auto damaged = [&] { UQA_FAIL(ErrorCode::kData, "{} is damaged or not a file of responses; remove it", path_.string()); };
  const std::size_t fixed = kMagic.size() + sizeof(std::uint64_t);
  if (content.size() < fixed || !content.starts_with(kMagic) || (content.size() - fixed) % sizeof(Record) != 0) damaged();
  const std::string_view records(content.data() + kMagic.size(), content.size() - fixed);
  std::uint64_t checksum = 0;
  std::memcpy(&checksum, content.data() + content.size() - sizeof(checksum), sizeof(checksum));
  if (checksum != hash64(bytes_of(records))) damaged();
  for (std::size_t at = 0; at < records.size(); at += sizeof(Record)) {
    Record record;
    std::memcpy(&record, records.data() + at, sizeof(record));
    responses_[record.key] = record.response;
  }
}

const Response* ResponseCache::find(const ResponseKey& key) const {
  const auto found = responses_.find(key);
  return found == responses_.end() ? nullptr : &found->second;
}

void ResponseCache::add(const ResponseKey& key, const Response& response) {
  responses_[key] = response;
  changed_ = true;
}

void ResponseCache::save() const {
  if (!changed_) return;
  std::string content(kMagic);
  for (const auto& [key, response] : responses_) {
    const Record record{.key = key, .response = response};
    content.append(reinterpret_cast<const char*>(&record), sizeof(record));
  }
  const auto checksum = hash64(bytes_of(std::string_view(content).substr(kMagic.size())));
  content.append(reinterpret_cast<const char*>(&checksum), sizeof(checksum));
  if (path_.has_parent_path()) fs::create_directories(path_.parent_path());
  write_file_atomic(path_, content);
}

}  // namespace uqa::trainer
