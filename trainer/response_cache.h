// trainer/response_cache.h - scores of questions that an aligned model has answered before: asking again costs nothing.
//
//   ResponseCache cache(run / "eval" / "responses.bin");
//   if (const auto* known = cache.find(key)) ...; else { score; cache.add(key, response); }
//   cache.save();
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/file.h"

namespace uqa::trainer {

/// What a question's scores depend on, as 128 bits of XXH3.
struct ResponseKey {
  std::uint64_t high = 0, low = 0;
  [[nodiscard]] static ResponseKey of(std::span<const std::byte> facts);
  [[nodiscard]] bool operator==(const ResponseKey&) const = default;
};

struct Response {
  std::array<float, 12> option_nats{};  ///< letters, texts, calibrated texts; zeros for a free-form question
  std::vector<std::int64_t> tokens;     ///< the answer as generated, at least one
};

/// A file of responses in memory; not thread-safe.
class ResponseCache {
 public:
  /// Reads `path` if it exists. Error(kData) for a file that is not ours or is damaged.
  explicit ResponseCache(fs::path path);
  [[nodiscard]] const Response* find(const ResponseKey& key) const;
  void add(const ResponseKey& key, const Response& response);
  /// Replaces the file, atomically, if anything was added. One rank calls it.
  void save() const;

 private:
  struct Hash {
    std::size_t operator()(const ResponseKey& key) const { return key.low; }
  };
  fs::path path_;
  std::unordered_map<ResponseKey, Response, Hash> responses_;
  bool changed_ = false;
};

}  // namespace uqa::trainer
