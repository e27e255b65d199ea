#include "models/format/bpe.h"

#include <algorithm>
#include <queue>

#include "core/error.h"
#include "models/format/utf8.h"

namespace uqa::format {
namespace {

std::uint64_t pair_key(Bpe::Id left, Bpe::Id right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

/// A piece being merged: a doubly linked list of symbols inside a vector.
struct Symbol {
  Bpe::Id id;
  std::int32_t previous, next;  // -1 at the ends
  bool removed = false;
};

struct Candidate {
  std::int32_t rank;
  std::int32_t position;
  Bpe::Id id;  // of the merged pair
  bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : position > other.position; }
};

std::string shown(std::string_view token) {
  constexpr std::size_t kShown = 60;
  return std::string(token.substr(0, kShown)) + (token.size() > kShown ? "..." : "");
}

}  // namespace

ByteAlphabet::ByteAlphabet() {
  char32_t next = 0x100;
  for (unsigned b = 0; b < 256; ++b) {
    const bool prints = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    const char32_t value = prints ? b : next++;
    append_utf8(text[b], value);
    byte_of.emplace(value, static_cast<unsigned char>(b));
  }
}

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet instance;
  return instance;
}

std::string token_bytes(std::string_view token) {
  const auto& alphabet = byte_alphabet();
  std::string bytes;
  for (std::string_view rest = token; !rest.empty();) {
    const auto point = first_code_point(rest);
    const auto found = point.valid ? alphabet.byte_of.find(point.value) : alphabet.byte_of.end();
    if (found == alphabet.byte_of.end()) return std::string(token);
    bytes.push_back(static_cast<char>(found->second));
    rest.remove_prefix(point.length);
  }
  return bytes;
}

Bpe::Bpe(std::unordered_map<std::string, Id> vocab, const std::vector<std::pair<std::string, std::string>>& merges, Options options,
         const std::string& what)
    : vocab_(std::move(vocab)), options_(options) {
  for (std::size_t b = 0; b < byte_ids_.size(); ++b) byte_ids_[b] = find(byte_alphabet().text[b]);
  merges_.reserve(merges.size());
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const Id left_id = find(left), right_id = find(right), merged_id = find(left + right);
    UQA_CHECK(left_id != kNone && right_id != kNone && merged_id != kNone, ErrorCode::kData,
              "{}: merge {} = '{}' + '{}', both and their concatenation must be in the vocabulary; the file is damaged", what, rank,
              shown(left), shown(right));
    merges_[pair_key(left_id, right_id)] = {static_cast<std::int32_t>(rank), merged_id};
  }
}

Bpe::Id Bpe::find(std::string_view token) const {
  const auto found = vocab_.find(std::string(token));
  return found == vocab_.end() ? kNone : found->second;
}

bool Bpe::has_every_byte() const { return std::find(byte_ids_.begin(), byte_ids_.end(), kNone) == byte_ids_.end(); }

const Bpe::Merge* Bpe::find_merge(Id left, Id right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void Bpe::encode_piece(std::string_view piece, std::vector<std::int64_t>& ids) const {
  if (options_.ignore_merges) {
    std::string token;
    for (const char c : piece) token += byte_alphabet().text[static_cast<unsigned char>(c)];
    if (const Id id = find(token); id != kNone) {
      ids.push_back(id);
      return;
    }
  }
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  for (const char c : piece) {
    const Id id = byte_ids_[static_cast<unsigned char>(c)];
    if (id == kNone) continue;
    const auto at = static_cast<std::int32_t>(symbols.size());
    symbols.push_back({id, at - 1, at + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;

  std::vector<Candidate> storage;
  storage.reserve(symbols.size());
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>(), std::move(storage));
  const auto at = [&](std::int32_t i) -> Symbol& { return symbols[static_cast<std::size_t>(i)]; };
  const auto offer = [&](std::int32_t left) {
    const Merge* const merge = find_merge(at(left).id, at(at(left).next).id);
    if (merge != nullptr) queue.push({merge->rank, left, merge->id});
  };
  for (std::int32_t i = 0; at(i).next >= 0; ++i) offer(i);

  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = at(best.position);
    if (left.removed || left.next < 0) continue;
    // Stale when either side changed since; the pair that is there now counts if it makes the same token (as the library does).
    const Merge* const now = find_merge(left.id, at(left.next).id);
    if (now == nullptr || now->id != best.id) continue;
    Symbol& right = at(left.next);
    right.removed = true;
    left.id = best.id;
    left.next = right.next;
    if (left.next >= 0) {
      at(left.next).previous = best.position;
      offer(best.position);
    }
    if (left.previous >= 0) offer(left.previous);
  }
  for (std::int32_t i = 0; i >= 0; i = at(i).next) ids.push_back(at(i).id);
}

}  // namespace uqa::format
