// data/questions/history_view.h - what questions are made from: item histories and the catalogue, in memory.
//
//   HistoryView view = view_of(dataset);                   // or filled by hand, in tests
//   const auto items = view.window({.user = 3, .end = 40}, /*max_len=*/200);
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/dataset.h"

namespace uqa::data {

/// A user's history up to interaction `end` (exclusive).
struct History {
  std::int32_t user = 0;
  std::int32_t end = 0;
};

/// Item ids of every user, oldest first, laid end to end.
struct HistoryView {
  std::vector<std::int64_t> offsets{0};  ///< [num_users + 1] into `items`
  std::vector<std::int32_t> items;
  ItemCatalog catalog;
  std::string digest;  ///< of the data set; recorded in questions.json
  std::vector<std::string> raw_user_ids;  ///< the source's ids; empty: users are named by their numbers

  [[nodiscard]] std::int64_t num_users() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
  [[nodiscard]] std::int64_t length(std::int64_t user) const {
    return offsets[static_cast<std::size_t>(user) + 1] - offsets[static_cast<std::size_t>(user)];
  }
  [[nodiscard]] std::int32_t item(std::int64_t user, std::int64_t t) const {
    return items[static_cast<std::size_t>(offsets[static_cast<std::size_t>(user)] + t)];
  }
  /// First interaction that is shown of a history of at most `max_len`.
  [[nodiscard]] static std::int64_t begin_of(const History& history, std::int64_t max_len) {
    return std::max<std::int64_t>(0, history.end - max_len);
  }
  /// The items shown, oldest first.
  [[nodiscard]] std::span<const std::int32_t> window(const History& history, std::int64_t max_len) const {
    const std::int64_t begin = begin_of(history, max_len);
    return std::span(items).subspan(static_cast<std::size_t>(offsets[static_cast<std::size_t>(history.user)] + begin),
                                    static_cast<std::size_t>(history.end - begin));
  }
  void add_user(std::span<const std::int32_t> history) {
    items.insert(items.end(), history.begin(), history.end());
    offsets.push_back(static_cast<std::int64_t>(items.size()));
  }
};

/// Copies the item ids, the users' names and the catalogue of `data`.
[[nodiscard]] HistoryView view_of(const Dataset& data);

}  // namespace uqa::data
