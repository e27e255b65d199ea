// data/questions/facts.h - what is true about a history, by kind of question: the raw material of the builder.
//
//   FactFinder finder(view, {{.index = 0, .label = "genre"}}, {});
//   finder.find(QuestionType::kShortTermInterest, history, /*history_index=*/0, facts);   // appends Fact{value, slot,
//   0}
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "data/question.h"
#include "data/questions/history_view.h"

namespace uqa::data {

/// A template of questions. "Most frequent" always means strictly: histories with a tie that matters make no fact.
enum class Form {
  kTitleFromStart,      ///< title of the k-th item shown
  kTitleFromEnd,        ///< title of the k-th item from the end
  kAttributeFromStart,  ///< a value of the attribute that the k-th item has
  kAttributeFromEnd,    ///< the same from the end
  kLength,              ///< number of items shown
  kCount,               ///< number of items with the slot's value
  kNextTitle,           ///< title of interaction `end`
  kNextAttribute,       ///< a value of the attribute that interaction `end` has
  kTopThree,            ///< the three most frequent values, most frequent first
  kAmongTopThree,       ///< one of the three most frequent values
  kRecentTop,           ///< most frequent value of the last `recent` items
  kTrajectory,          ///< most frequent value of each third, oldest first; not all equal
};
[[nodiscard]] QuestionType type_of(Form form);
/// Whether several answers can be true of one history, so that "wrong" must be checked and not only "different".
[[nodiscard]] bool has_many_answers(Form form);
/// Whether the answers are numbers, and whether they are three values packed by pack_values.
[[nodiscard]] bool is_numeric(Form form);
[[nodiscard]] bool is_triple(Form form);

/// Everything about a question that its stem says.
struct Slot {
  Form form = Form::kLength;
  int attribute = -1;       ///< into FactFinder::attributes(), where the form has one
  int position = 0;         ///< k >= 1, where the form has one
  std::int32_t value = -1;  ///< kCount: which value is counted
};

/// `value` is a title id, an attribute value, a number, or three packed attribute values.
struct Fact {
  std::uint64_t value = 0;
  std::uint32_t slot = 0;
  std::uint32_t history = 0;
};

[[nodiscard]] constexpr std::uint64_t pack_values(std::uint64_t a, std::uint64_t b, std::uint64_t c) {
  return a << 42 | b << 21 | c;
}
[[nodiscard]] constexpr std::array<std::uint64_t, 3> unpack_values(std::uint64_t packed) {
  constexpr std::uint64_t kMask = (std::uint64_t{1} << 21) - 1;
  return {packed >> 42, packed >> 21 & kMask, packed & kMask};
}

struct AttributeChoice {
  std::size_t index = 0;  ///< into ItemCatalog::attributes
  std::string label;      ///< the word used in questions
};

struct FactOptions {
  std::int64_t max_len = 200, recent = 10, max_position = 5;
  std::size_t counted_values = 64;  ///< kCount asks for the most frequent values of an attribute only
};

/// Reads `view`, which must outlive it. Not thread-safe (it keeps counters between calls).
class FactFinder {
 public:
  /// Throws Error(kData) for an attribute with 2^21 values or more.
  FactFinder(const HistoryView& view, std::vector<AttributeChoice> attributes, FactOptions options);

  [[nodiscard]] const std::vector<AttributeChoice>& attributes() const { return attributes_; }
  /// Whether an item of the catalogue has more than one value of the attribute.
  [[nodiscard]] bool is_multi_valued(int attribute) const { return multi_valued_[static_cast<std::size_t>(attribute)]; }
  /// The slots of a type; Fact::slot indexes them. Slots of one (form, attribute) are neighbours.
  [[nodiscard]] const std::vector<Slot>& slots(QuestionType type) const {
    return slots_[static_cast<std::size_t>(type)];
  }
  /// Appends every fact of `type` that holds for `history`.
  void find(QuestionType type, const History& history, std::uint32_t history_index, std::vector<Fact>& facts);
  /// Whether `value` is a true answer for `history`; only for forms with many answers.
  [[nodiscard]] bool holds(const Slot& slot, const History& history, std::uint64_t value);

  [[nodiscard]] const std::string& title(std::uint64_t title_id) const { return titles_[title_id]; }
  [[nodiscard]] const std::string& value_text(int attribute, std::uint64_t value) const;

 private:
  struct Frequency {
    std::int32_t value;
    std::int32_t count;
  };
  template <typename Visit>
  void for_each_value(int attribute, std::int32_t item, Visit&& visit) const;
  /// Values and counts over `items` in no particular order; valid until the next call.
  const std::vector<Frequency>& count(int attribute, std::span<const std::int32_t> items);
  /// The same, with the `n` most frequent first (descending).
  const std::vector<Frequency>& top(int attribute, std::span<const std::int32_t> items, std::size_t n);
  /// The strictly most frequent value, or -1.
  std::int32_t strict_top(int attribute, std::span<const std::int32_t> items);
  [[nodiscard]] const ItemCatalog::Attribute& attribute(int a) const {
    return view_.catalog.attributes[attributes_[static_cast<std::size_t>(a)].index];
  }

  const HistoryView& view_;
  std::vector<AttributeChoice> attributes_;
  FactOptions options_;
  std::vector<bool> multi_valued_;
  std::vector<std::string> titles_;          ///< distinct titles
  std::vector<std::int64_t> title_of_item_;  ///< title id, or -1
  std::array<std::vector<Slot>, kQuestionTypes.size()> slots_;
  std::vector<std::vector<std::int32_t>> count_slot_;  ///< [attribute][value]: slot of kCount, or -1
  std::vector<std::vector<std::int32_t>> counters_;    ///< [attribute][value], zero between calls
  std::vector<Frequency> frequencies_;
};

}  // namespace uqa::data
