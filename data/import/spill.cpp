#include "data/import/spill.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include "core/error.h"

namespace uqa::data::import {
namespace {

constexpr std::size_t kKeyBytes = 2 * sizeof(std::int64_t);
constexpr std::size_t kBufferBudget = 256 << 20;  ///< over all files

template <typename T>
void append(std::string& buffer, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  buffer.append(bytes, sizeof(T));
}

}  // namespace

fs::path spill_name(std::int64_t shard) { return fmt::format("part-{:05d}.bin", shard); }

SpillWriter::SpillWriter(const fs::path& directory, std::int64_t num_shards, std::vector<bool> multi_valued)
    : multi_valued_(std::move(multi_valued)),
      buffer_bytes_(std::min<std::size_t>(1 << 20, kBufferBudget / static_cast<std::size_t>(num_shards))) {
  parts_.resize(static_cast<std::size_t>(num_shards));
  for (std::size_t s = 0; s < parts_.size(); ++s) {
    auto& part = parts_[s];
    part.path = directory / spill_name(static_cast<std::int64_t>(s));
    part.fd = ::open(part.path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (part.fd < 0) {
      const int error = errno;
      for (auto& opened : parts_) {
        if (opened.fd >= 0) ::close(opened.fd);
      }
      UQA_FAIL(ErrorCode::kData, "cannot create {}: {}; with many shards raise `ulimit -n`", part.path.string(), std::strerror(error));
    }
  }
}

SpillWriter::~SpillWriter() {
  for (auto& part : parts_) {
    if (part.fd >= 0) ::close(part.fd);
  }
}

void SpillWriter::add(const SpillRecord& record) {
  auto& part = parts_[static_cast<std::size_t>(record.user) % parts_.size()];
  append(part.buffer, record.user);
  append(part.buffer, record.time_us);
  for (std::size_t f = 0; f < multi_valued_.size(); ++f) {
    if (multi_valued_[f]) append(part.buffer, static_cast<std::int32_t>(record.ids[f].size()));
    for (const std::int32_t id : record.ids[f]) append(part.buffer, id);
  }
  if (part.buffer.size() >= buffer_bytes_) flush(part);
}

void SpillWriter::flush(Part& part) {
  std::size_t done = 0;
  while (done < part.buffer.size()) {
    const auto n = ::write(part.fd, part.buffer.data() + done, part.buffer.size() - done);
    if (n < 0 && errno == EINTR) continue;
    UQA_CHECK(n > 0, ErrorCode::kData, "cannot write {}: {}; free some space and run again", part.path.string(), std::strerror(errno));
    done += static_cast<std::size_t>(n);
  }
  part.buffer.clear();
}

void SpillWriter::finish() {
  for (auto& part : parts_) {
    flush(part);
    const int fd = std::exchange(part.fd, -1);
    UQA_CHECK(fd < 0 || ::close(fd) == 0, ErrorCode::kData, "cannot write {}: {}; free some space and run again", part.path.string(),
              std::strerror(errno));
  }
}

SpillReader::SpillReader(const fs::path& path, std::vector<bool> multi_valued) : file_(path), multi_valued_(std::move(multi_valued)) {}

std::int32_t SpillReader::word(std::size_t offset) const {
  const auto bytes = file_.bytes();
  UQA_CHECK(offset + sizeof(std::int32_t) <= bytes.size(), ErrorCode::kData, "{} is cut; run the import again", file_.path().string());
  std::int32_t value = 0;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

std::span<const std::int32_t> SpillReader::next_ids(std::size_t& offset, bool multi_valued) const {
  std::size_t count = 1;
  if (multi_valued) {
    count = static_cast<std::size_t>(word(offset));
    offset += sizeof(std::int32_t);
  }
  const auto bytes = file_.bytes();
  UQA_CHECK(count <= (bytes.size() - offset) / sizeof(std::int32_t), ErrorCode::kData, "{} is cut; run the import again", file_.path().string());
  // Keys are 8 bytes and ids 4, so ids stay aligned to 4 bytes.
  const std::span ids(reinterpret_cast<const std::int32_t*>(bytes.data() + offset), count);
  offset += count * sizeof(std::int32_t);
  return ids;
}

std::vector<SpillReader::Entry> SpillReader::entries() const {
  std::vector<Entry> out;
  const auto bytes = file_.bytes();
  std::size_t at = 0;
  while (at < bytes.size()) {
    UQA_CHECK(at + kKeyBytes <= bytes.size(), ErrorCode::kData, "{} is cut; run the import again", file_.path().string());
    Entry entry;
    std::memcpy(&entry.user, bytes.data() + at, sizeof entry.user);
    std::memcpy(&entry.time_us, bytes.data() + at + sizeof entry.user, sizeof entry.time_us);
    at += kKeyBytes;
    entry.offset = at;
    out.push_back(entry);
    for (const bool multi : multi_valued_) (void)next_ids(at, multi);
  }
  return out;
}

}  // namespace uqa::data::import
