#include "data/questions/sampler.h"

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "core/error.h"
#include "core/random.h"
#include "data/questions/wording.h"

namespace uqa::data {

namespace {

constexpr std::size_t kNumOptions = 4;
constexpr std::size_t kMaxOptionBytes = 200;       // a title beyond this is a data error, and costs tokens four times
constexpr std::int64_t kMaxFailuresInARow = 5000;  // then the option sets of the type have run out
constexpr int kDrawsPerValue = 64, kDrawsPerHistory = 64;

using Values = std::array<std::uint64_t, kNumOptions>;

// Facts of one slot, sorted by value: a uniform draw is a draw from the distribution of true answers.
struct SlotFacts {
  std::uint32_t slot = 0;
  std::span<const Fact> facts;
};
// Slots of one (form, attribute): families are asked equally often, a slot within its family by its number of facts.
struct Family {
  std::vector<SlotFacts> slots;
  std::vector<std::uint64_t> cumulative;
};

class Sampler {
 public:
  Sampler(const SamplerInput& input, QuestionType type, std::uint64_t random_key)
      : input_(input), type_(type), slots_(input.finder.slots(type)), random_(random_key) {
    for (std::size_t h = 0; h < input_.histories.size(); ++h) {
      input_.finder.find(type_, input_.histories[h], static_cast<std::uint32_t>(h), facts_);
    }
    std::sort(facts_.begin(), facts_.end(), [](const Fact& x, const Fact& y) {
      return std::tie(x.slot, x.value, x.history) < std::tie(y.slot, y.value, y.history);
    });
    for (std::size_t begin = 0; begin < facts_.size();) {
      std::size_t end = begin, distinct = 0;
      while (end < facts_.size() && facts_[end].slot == facts_[begin].slot) {
        if (end == begin || facts_[end].value != facts_[end - 1].value) ++distinct;
        ++end;
      }
      const std::uint32_t slot = facts_[begin].slot;
      if (distinct >= kNumOptions && is_classified(slots_[slot])) {
        const bool is_new = families_.empty() || slots_[families_.back().slots.back().slot].form != slots_[slot].form ||
                            slots_[families_.back().slots.back().slot].attribute != slots_[slot].attribute;
        Family& family = is_new ? families_.emplace_back() : families_.back();
        family.slots.push_back({slot, std::span(facts_).subspan(begin, end - begin)});
        family.cumulative.push_back((family.cumulative.empty() ? 0 : family.cumulative.back()) + (end - begin));
      }
      begin = end;
    }
  }

  std::vector<Question> draw(std::int64_t wanted, const std::function<void(std::int64_t)>& advance) {
    std::vector<Question> questions;
    const std::int64_t per_set = input_.options.gold_choice == GoldChoice::kEachOption ? std::ssize(Values{}) : 1;
    std::int64_t failures = 0;
    while (!families_.empty() && std::ssize(questions) + per_set <= wanted && failures < kMaxFailuresInARow) {
      const std::size_t before = questions.size();
      try_one(questions);
      if (questions.size() == before) {
        ++failures;
      } else {
        failures = 0;
        advance(std::ssize(questions) - static_cast<std::int64_t>(before));
      }
    }
    return questions;
  }

 private:
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(random_.below(n)); }

  bool is_classified(const Slot& slot) const {
    return is_classified(stem_text(input_.finder, slot, input_.options.language, input_.options.recent));
  }
  // A value or label that contains another type's key phrase would be scored under that type.
  bool is_classified(const std::string& text) const {
    return input_.options.language != Language::kChinese || classify_official(text) == type_;
  }

  const SlotFacts& draw_slot() {
    const Family& family = families_[below(families_.size())];
    const std::uint64_t ticket = random_.below(family.cumulative.back());
    const auto it = std::upper_bound(family.cumulative.begin(), family.cumulative.end(), ticket);
    return family.slots[static_cast<std::size_t>(it - family.cumulative.begin())];
  }

  std::optional<Values> draw_values(const SlotFacts& slot) {
    Values values{};
    for (std::size_t i = 0; i < kNumOptions; ++i) {
      const auto taken = values.begin() + static_cast<std::ptrdiff_t>(i);
      int draws = 0;
      do {
        if (++draws > kDrawsPerValue) return std::nullopt;
        values[i] = slot.facts[below(slot.facts.size())].value;
      } while (std::find(values.begin(), taken, values[i]) != taken);
    }
    return values;
  }

  // Whether the options can stand side by side; looks at the set alone, never at which one is gold.
  bool is_clear(const Slot& slot, Values values) const {
    std::sort(values.begin(), values.end());
    if (is_numeric(slot.form)) {
      // Neighbours a few per cent apart would ask for exact counting of long histories and nothing else.
      for (std::size_t i = 1; i < kNumOptions; ++i) {
        if (values[i] < values[i - 1] + std::max<std::uint64_t>(1, values[i - 1] / 4)) return false;
      }
    }
    if (slot.form == Form::kTopThree) {
      std::array<std::array<std::uint64_t, 3>, kNumOptions> sets{};
      for (std::size_t i = 0; i < kNumOptions; ++i) {
        sets[i] = unpack_values(values[i]);
        std::sort(sets[i].begin(), sets[i].end());
      }
      std::sort(sets.begin(), sets.end());
      if (std::adjacent_find(sets.begin(), sets.end()) != sets.end()) return false;
    }
    return true;
  }

  std::uint64_t use_key(std::uint32_t slot, const Values& values, std::uint64_t gold, std::uint32_t history) const {
    Values sorted = values;
    std::sort(sorted.begin(), sorted.end());
    std::uint64_t key = slot;
    for (const std::uint64_t value : sorted) key = mix_key(key, value);
    return mix_key(mix_key(key, gold), history);
  }

  // A history for which values[gold] is true and the other three are not, uniformly among those; empty if none was
  // found or the one that was found has already been asked this.
  std::optional<std::uint32_t> draw_history(const SlotFacts& slot, const Values& values, std::size_t gold) {
    const auto [first, last] = std::equal_range(slot.facts.begin(), slot.facts.end(), Fact{values[gold], 0, 0},
                                                [](const Fact& x, const Fact& y) { return x.value < y.value; });
    const Slot& what = slots_[slot.slot];
    for (int draw = 0; draw < kDrawsPerHistory; ++draw) {
      const Fact& fact = first[static_cast<std::ptrdiff_t>(below(static_cast<std::size_t>(last - first)))];
      bool fits = true;
      for (std::size_t i = 0; i < kNumOptions && fits && has_many_answers(what.form); ++i) {
        fits = i == gold || !input_.finder.holds(what, input_.histories[fact.history], values[i]);
      }
      if (!fits) continue;
      if (used_.contains(use_key(slot.slot, values, values[gold], fact.history))) return std::nullopt;
      return fact.history;
    }
    return std::nullopt;
  }

  // Appends one question per option, or one question; or nothing when the option set is refused.
  void try_one(std::vector<Question>& questions) {
    const SlotFacts& slot = draw_slot();
    const Slot& what = slots_[slot.slot];
    auto drawn = draw_values(slot);
    if (!drawn || !is_clear(what, *drawn)) return;
    Values values = *drawn;
    for (std::size_t i = kNumOptions; i > 1; --i) std::swap(values[i - 1], values[below(i)]);  // the order shown

    Question question;
    question.type = type_;
    question.stem = stem_text(input_.finder, what, input_.options.language, input_.options.recent);
    for (const std::uint64_t value : values) {
      question.options.push_back(option_text(input_.finder, what, value, input_.options.language));
      const std::string& text = question.options.back();
      if (text.empty() || text.size() > kMaxOptionBytes ||
          std::find(question.options.begin(), question.options.end() - 1, text) != question.options.end() - 1) {
        return;
      }
    }
    question.text = message_text(question.stem, question.options, input_.options.language);
    if (!is_classified(question.text)) return;

    std::array<std::uint32_t, kNumOptions> history_of{};
    for (std::size_t gold = 0; gold < kNumOptions; ++gold) {
      const auto history = draw_history(slot, values, gold);
      if (!history) return;
      history_of[gold] = *history;
    }
    const bool each = input_.options.gold_choice == GoldChoice::kEachOption;
    const std::size_t first = each ? 0 : below(kNumOptions), last = each ? kNumOptions : first + 1;
    for (std::size_t gold = first; gold < last; ++gold) {
      const History& history = input_.histories[history_of[gold]];
      used_.insert(use_key(slot.slot, values, values[gold], history_of[gold]));
      question.user = history.user;
      question.begin = HistoryView::begin_of(history, input_.options.max_len);
      question.end = history.end;
      question.answer = std::string(1, static_cast<char>('A' + static_cast<int>(gold)));
      questions.push_back(question);
    }
  }

  const SamplerInput& input_;
  QuestionType type_;
  const std::vector<Slot>& slots_;
  PhiloxStream random_;
  std::vector<Fact> facts_;
  std::vector<Family> families_;
  std::unordered_set<std::uint64_t> used_;  // (slot, option set, gold, history)
};

}  // namespace

std::vector<Question> sample_questions(const SamplerInput& input, QuestionType type, std::int64_t wanted,
                                       std::uint64_t random_key, const std::function<void(std::int64_t)>& advance) {
  return Sampler(input, type, random_key).draw(wanted, advance);
}

}  // namespace uqa::data
