#include "data/questions/facts.h"

#include <algorithm>
#include <numeric>
#include <unordered_map>
#include <utility>

#include "core/error.h"

namespace uqa::data {

QuestionType type_of(Form form) {
  switch (form) {
    case Form::kTitleFromStart:
    case Form::kTitleFromEnd:
    case Form::kAttributeFromStart:
    case Form::kAttributeFromEnd:
      return QuestionType::kDirectFeature;
    case Form::kLength:
    case Form::kCount:
      return QuestionType::kMatchFeature;
    case Form::kNextTitle:
      return QuestionType::kItemPrediction;
    case Form::kNextAttribute:
      return QuestionType::kAttributePrediction;
    case Form::kTopThree:
    case Form::kAmongTopThree:
      return QuestionType::kLongTermInterest;
    case Form::kRecentTop:
      return QuestionType::kShortTermInterest;
    case Form::kTrajectory:
      return QuestionType::kInterestTrajectory;
  }
  UQA_FAIL(ErrorCode::kInternal, "question form {} is unknown", static_cast<int>(form));
}

bool has_many_answers(Form form) {
  return form == Form::kAttributeFromStart || form == Form::kAttributeFromEnd || form == Form::kNextAttribute ||
         form == Form::kAmongTopThree;
}
bool is_numeric(Form form) { return form == Form::kLength || form == Form::kCount; }
bool is_triple(Form form) { return form == Form::kTopThree || form == Form::kTrajectory; }

template <typename Visit>
void FactFinder::for_each_value(int a, std::int32_t item, Visit&& visit) const {
  const auto values = attribute(a).of(item);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const bool repeated = std::find(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(i), values[i]) !=
                          values.begin() + static_cast<std::ptrdiff_t>(i);
    if (!repeated && !value_text(a, static_cast<std::uint64_t>(values[i])).empty()) visit(values[i]);
  }
}

FactFinder::FactFinder(const HistoryView& view, std::vector<AttributeChoice> attributes, FactOptions options)
    : view_(view), attributes_(std::move(attributes)), options_(options) {
  // Items that share a title are one answer: a distractor must differ in what the reader sees.
  std::unordered_map<std::string, std::int64_t> ids;
  for (const std::string& title : view_.catalog.titles) {
    std::int64_t id = -1;
    if (!title.empty()) {
      const auto [it, is_new] = ids.try_emplace(title, static_cast<std::int64_t>(titles_.size()));
      if (is_new) titles_.push_back(title);
      id = it->second;
    }
    title_of_item_.push_back(id);
  }

  const int num_attributes = static_cast<int>(attributes_.size());
  const auto add = [&](Slot slot) { slots_[static_cast<std::size_t>(type_of(slot.form))].push_back(slot); };
  const auto add_positions = [&](Form form, int a) {
    for (int k = 1; k <= static_cast<int>(options_.max_position); ++k)
      add({.form = form, .attribute = a, .position = k});
  };
  add_positions(Form::kTitleFromStart, -1);
  add_positions(Form::kTitleFromEnd, -1);
  add({.form = Form::kLength});
  add({.form = Form::kNextTitle});
  std::vector<std::int64_t> clicks(title_of_item_.size());
  for (const std::int32_t item : view_.items) {
    if (static_cast<std::size_t>(item) >= clicks.size()) clicks.resize(static_cast<std::size_t>(item) + 1);
    ++clicks[static_cast<std::size_t>(item)];
  }
  for (int a = 0; a < num_attributes; ++a) {
    const ItemCatalog::Attribute& source = attribute(a);
    const std::size_t num_values = source.vocabulary.size();
    UQA_CHECK(
        num_values < (std::size_t{1} << 21), ErrorCode::kData,
        "attribute '{}' has {} values, must be fewer than 2097152 to be asked about; leave it out of the attributes",
        source.name, num_values);
    std::vector<std::int64_t> frequency(num_values);
    bool multi = false;
    const std::int64_t num_items = static_cast<std::int64_t>(source.offsets.size()) - 1;
    for (std::int64_t item = 0; item < num_items; ++item) {
      const std::size_t i = static_cast<std::size_t>(item);
      std::int64_t values = 0;
      for_each_value(a, static_cast<std::int32_t>(item), [&](std::int32_t value) {
        ++values;
        if (i < clicks.size()) frequency[static_cast<std::size_t>(value)] += clicks[i];
      });
      multi = multi || values > 1;
    }
    multi_valued_.push_back(multi);
    add_positions(Form::kAttributeFromStart, a);
    add_positions(Form::kAttributeFromEnd, a);
    std::vector<std::int32_t> order(num_values);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t x, std::int32_t y) {
      return frequency[static_cast<std::size_t>(x)] > frequency[static_cast<std::size_t>(y)];
    });
    order.resize(std::min(order.size(), options_.counted_values));
    auto& slot_of_value = count_slot_.emplace_back(num_values, -1);
    for (const std::int32_t value : order) {
      slot_of_value[static_cast<std::size_t>(value)] =
          static_cast<std::int32_t>(slots(QuestionType::kMatchFeature).size());
      add({.form = Form::kCount, .attribute = a, .value = value});
    }
    add({.form = Form::kNextAttribute, .attribute = a});
    add({.form = Form::kTopThree, .attribute = a});
    add({.form = Form::kAmongTopThree, .attribute = a});
    add({.form = Form::kRecentTop, .attribute = a});
    add({.form = Form::kTrajectory, .attribute = a});
    counters_.emplace_back(num_values, 0);
  }
}

const std::string& FactFinder::value_text(int a, std::uint64_t value) const { return attribute(a).vocabulary[value]; }

const std::vector<FactFinder::Frequency>& FactFinder::count(int a, std::span<const std::int32_t> items) {
  auto& counters = counters_[static_cast<std::size_t>(a)];
  frequencies_.clear();
  for (const std::int32_t item : items) {
    for_each_value(a, item, [&](std::int32_t value) {
      if (counters[static_cast<std::size_t>(value)]++ == 0) frequencies_.push_back({value, 0});
    });
  }
  for (Frequency& f : frequencies_) f.count = std::exchange(counters[static_cast<std::size_t>(f.value)], 0);
  return frequencies_;
}

const std::vector<FactFinder::Frequency>& FactFinder::top(int a, std::span<const std::int32_t> items, std::size_t n) {
  count(a, items);
  const auto middle = frequencies_.begin() + static_cast<std::ptrdiff_t>(std::min(n, frequencies_.size()));
  std::partial_sort(frequencies_.begin(), middle, frequencies_.end(), [](const Frequency& x, const Frequency& y) {
    return x.count != y.count ? x.count > y.count : x.value < y.value;
  });
  return frequencies_;
}

std::int32_t FactFinder::strict_top(int a, std::span<const std::int32_t> items) {
  const auto& most = top(a, items, 2);
  return most.empty() || (most.size() > 1 && most[0].count == most[1].count) ? -1 : most[0].value;
}

void FactFinder::find(QuestionType type, const History& history, std::uint32_t history_index,
                      std::vector<Fact>& facts) {
  const auto items = view_.window(history, options_.max_len);
  const auto& all = slots(type);
  const auto emit = [&](std::size_t slot, std::uint64_t value) {
    facts.push_back({value, static_cast<std::uint32_t>(slot), history_index});
  };
  const auto emit_title = [&](std::size_t slot, std::int32_t item) {
    const std::size_t i = static_cast<std::size_t>(item);
    if (i < title_of_item_.size() && title_of_item_[i] >= 0) emit(slot, static_cast<std::uint64_t>(title_of_item_[i]));
  };
  const auto emit_values = [&](std::size_t slot, std::int32_t item) {
    for_each_value(all[slot].attribute, item,
                   [&](std::int32_t value) { emit(slot, static_cast<std::uint64_t>(value)); });
  };
  const bool has_next = history.end < view_.length(history.user);
  int counted_attribute = -1;
  for (std::size_t s = 0; s < all.size(); ++s) {
    const Slot& slot = all[s];
    const std::size_t k = static_cast<std::size_t>(slot.position);
    switch (slot.form) {
      case Form::kTitleFromStart:
        if (k <= items.size()) emit_title(s, items[k - 1]);
        break;
      case Form::kTitleFromEnd:
        if (k <= items.size()) emit_title(s, items[items.size() - k]);
        break;
      case Form::kAttributeFromStart:
        if (k <= items.size()) emit_values(s, items[k - 1]);
        break;
      case Form::kAttributeFromEnd:
        if (k <= items.size()) emit_values(s, items[items.size() - k]);
        break;
      case Form::kLength:
        emit(s, items.size());
        break;
      case Form::kCount:
        // One pass over the history fills every slot of the attribute, which are neighbours.
        if (slot.attribute != std::exchange(counted_attribute, slot.attribute)) {
          for (const Frequency& f : count(slot.attribute, items)) {
            const auto count_slot =
                count_slot_[static_cast<std::size_t>(slot.attribute)][static_cast<std::size_t>(f.value)];
            if (count_slot >= 0) emit(static_cast<std::size_t>(count_slot), static_cast<std::uint64_t>(f.count));
          }
        }
        break;
      case Form::kNextTitle:
        if (has_next) emit_title(s, view_.item(history.user, history.end));
        break;
      case Form::kNextAttribute:
        if (has_next) emit_values(s, view_.item(history.user, history.end));
        break;
      case Form::kTopThree:
      case Form::kAmongTopThree: {
        const auto& most = top(slot.attribute, items, 4);
        if (most.size() < 3 || (most.size() > 3 && most[2].count == most[3].count)) break;
        const auto value = [&](std::size_t i) { return static_cast<std::uint64_t>(most[i].value); };
        if (slot.form == Form::kAmongTopThree) {
          for (std::size_t i = 0; i < 3; ++i) emit(s, value(i));
        } else if (most[0].count > most[1].count && most[1].count > most[2].count) {
          emit(s, pack_values(value(0), value(1), value(2)));
        }
        break;
      }
      case Form::kRecentTop: {
        const std::size_t recent = static_cast<std::size_t>(options_.recent);
        if (items.size() < recent) break;
        const std::int32_t value = strict_top(slot.attribute, items.last(recent));
        if (value >= 0) emit(s, static_cast<std::uint64_t>(value));
        break;
      }
      case Form::kTrajectory: {
        const std::size_t n = items.size();
        if (n < 9) break;  // fewer than three interactions a third say little about a preference
        std::array<std::int32_t, 3> path{};
        for (std::size_t i = 0; i < 3; ++i) {
          path[i] = strict_top(slot.attribute, items.subspan(n * i / 3, n * (i + 1) / 3 - n * i / 3));
        }
        if (*std::min_element(path.begin(), path.end()) < 0 || (path[0] == path[1] && path[1] == path[2])) break;
        emit(s, pack_values(static_cast<std::uint64_t>(path[0]), static_cast<std::uint64_t>(path[1]),
                            static_cast<std::uint64_t>(path[2])));
        break;
      }
    }
  }
}

bool FactFinder::holds(const Slot& slot, const History& history, std::uint64_t value) {
  const auto items = view_.window(history, options_.max_len);
  const std::size_t k = static_cast<std::size_t>(slot.position);
  const auto item_has = [&](std::int32_t item) {
    const auto values = attribute(slot.attribute).of(item);
    return std::find(values.begin(), values.end(), static_cast<std::int32_t>(value)) != values.end();
  };
  switch (slot.form) {
    case Form::kAttributeFromStart:
      return item_has(items[k - 1]);
    case Form::kAttributeFromEnd:
      return item_has(items[items.size() - k]);
    case Form::kNextAttribute:
      return item_has(view_.item(history.user, history.end));
    case Form::kAmongTopThree: {
      const auto& most = top(slot.attribute, items, 3);
      return std::any_of(most.begin(), most.begin() + std::min<std::ptrdiff_t>(3, std::ssize(most)),
                         [&](const Frequency& f) { return f.value == static_cast<std::int32_t>(value); });
    }
    default:
      UQA_FAIL(ErrorCode::kInternal, "holds() is for forms with many answers, not {}", static_cast<int>(slot.form));
  }
}

}  // namespace uqa::data
