#include "models/format/added_tokens.h"

#include <algorithm>

#include "core/error.h"

namespace uqa::format {

void LiteralMatcher::add(std::string text, std::int64_t id) {
  UQA_CHECK(!text.empty(), ErrorCode::kInternal, "LiteralMatcher needs texts that are not empty");
  auto& bucket = by_first_byte_[static_cast<unsigned char>(text.front())];
  const auto place = std::find_if(bucket.begin(), bucket.end(), [&](const Literal& other) { return other.text.size() < text.size(); });
  bucket.insert(place, {std::move(text), id});
}

void LiteralMatcher::split(std::string_view text, const std::function<void(std::string_view)>& gap,
                           const std::function<void(std::int64_t)>& match) const {
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto& bucket = by_first_byte_[static_cast<unsigned char>(text[at])];
    const auto found = std::find_if(bucket.begin(), bucket.end(),
                                    [&](const Literal& literal) { return text.substr(at).starts_with(literal.text); });
    if (found == bucket.end()) {
      ++at;
      continue;
    }
    if (at > done) gap(text.substr(done, at - done));
    match(found->id);
    at += found->text.size();
    done = at;
  }
  if (done < text.size()) gap(text.substr(done));
}

}  // namespace uqa::format
