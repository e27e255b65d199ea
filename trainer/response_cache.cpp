#include "trainer/response_cache.h"

#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/hash.h"

namespace uqa::trainer {
namespace {

constexpr std::string_view kMagic = "uqa.responses 2\n";

/// The fixed part of one response on disk, native byte order; its tokens (int64 each) follow.
struct Record {
  ResponseKey key;
  std::array<float, 12> option_nats{};
  std::uint64_t num_tokens = 0;
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
  UQA_CHECK(!content.starts_with("uqa.responses 1\n"), ErrorCode::kData, "{} holds responses of an earlier version, without answers; remove it", path_.string());
  if (content.size() < fixed || !content.starts_with(kMagic)) damaged();
  std::string_view records(content.data() + kMagic.size(), content.size() - fixed);
  std::uint64_t checksum = 0;
  std::memcpy(&checksum, content.data() + content.size() - sizeof(checksum), sizeof(checksum));
  if (checksum != hash64(bytes_of(records))) damaged();
  while (!records.empty()) {
    Record record;
    if (records.size() < sizeof(record)) damaged();
    std::memcpy(&record, records.data(), sizeof(record));
    records.remove_prefix(sizeof(record));
    if (record.num_tokens == 0 || record.num_tokens > records.size() / sizeof(std::int64_t)) damaged();
    auto& response = responses_[record.key];
    response.option_nats = record.option_nats;
    response.tokens.resize(record.num_tokens);
    std::memcpy(response.tokens.data(), records.data(), record.num_tokens * sizeof(std::int64_t));
    records.remove_prefix(record.num_tokens * sizeof(std::int64_t));
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
    const Record record{.key = key, .option_nats = response.option_nats, .num_tokens = response.tokens.size()};
    content.append(reinterpret_cast<const char*>(&record), sizeof(record));
    content.append(reinterpret_cast<const char*>(response.tokens.data()), response.tokens.size() * sizeof(std::int64_t));
  }
  const auto checksum = hash64(bytes_of(std::string_view(content).substr(kMagic.size())));
  content.append(reinterpret_cast<const char*>(&checksum), sizeof(checksum));
  if (path_.has_parent_path()) fs::create_directories(path_.parent_path());
  write_file_atomic(path_, content);
}

}  // namespace uqa::trainer
