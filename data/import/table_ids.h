// data/import/table_ids.h - the ids of one embedding table: integers of the source, or texts numbered by first appearance.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "core/file.h"

namespace uqa::data::import {

/// Where a value stands, for messages.
struct ValuePlace {
  const fs::path& file;
  std::int64_t row = 0;  ///< from 1
  const std::string& column;
};

/// Numbers texts by first appearance.
class Vocabulary {
 public:
  /// The number of `text`, a new one if it is new.
  std::int64_t add(std::string_view text);
  [[nodiscard]] std::optional<std::int64_t> find(std::string_view text) const;
  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(texts_.size()); }
  [[nodiscard]] const std::deque<std::string>& texts() const { return texts_; }

 private:
  std::deque<std::string> texts_;  ///< a deque, since the keys point into it
  std::unordered_map<std::string_view, std::int64_t> numbers_;
};

class TableIds {
 public:
  /// With `rows` the source's ids are integers in [0, rows); without, they are texts.
  TableIds(std::string name, std::optional<std::int64_t> rows) : name_(std::move(name)), declared_rows_(rows) {}

  /// The id of a text. Throws Error(kData) for an id that is no integer or outside the declared rows, or more than 2^31 - 1 texts.
  std::int32_t id(std::string_view text, const ValuePlace& place);
  /// An integer id, checked against the declared rows.
  [[nodiscard]] std::int32_t id(std::int64_t value, const ValuePlace& place) const;
  /// Same as id(text), but nullopt for a text that was not seen.
  [[nodiscard]] std::optional<std::int32_t> find(std::string_view text, const ValuePlace& place) const;

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] bool declared() const { return declared_rows_.has_value(); }
  /// Rows that an embedding table needs; at least 1.
  [[nodiscard]] std::int64_t rows() const;
  /// Texts by id; empty when the ids were integers.
  [[nodiscard]] const std::deque<std::string>& texts() const { return vocabulary_.texts(); }

 private:
  [[nodiscard]] std::int32_t parse(std::string_view text, const ValuePlace& place) const;

  std::string name_;
  std::optional<std::int64_t> declared_rows_;
  Vocabulary vocabulary_;
};

}  // namespace uqa::data::import
