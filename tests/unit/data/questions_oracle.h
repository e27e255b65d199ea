// tests/unit/data/questions_oracle.h - answers a built question from its stem's words and the history alone, sharing no
// code with the builder: the stem is parsed, attributes are compared as texts.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

#include "data/question.h"
#include "data/questions/history_view.h"

namespace uqa::data {

class Oracle {
 public:
  Oracle(const HistoryView& view, std::map<std::string, std::string> name_of_label)
      : view_(view), names_(std::move(name_of_label)) {}

  /// Whether `option` truly answers `q`; empty where it is neither clearly right nor clearly wrong.
  [[nodiscard]] std::optional<bool> truth(const Question& q, const std::string& option) const {
    std::smatch m;
    const auto matches = [&](const char* pattern) {
      const auto compiled = patterns_.try_emplace(pattern, pattern).first;  // compiling costs far more than matching
      return std::regex_match(q.stem, m, compiled->second);
    };
    const auto nth = [&](const std::string& k) { return q.begin + std::stol(k) - 1; };
    const auto nth_last = [&](const std::string& k) { return q.end - std::stol(k); };
    // English
    if (matches("What is the title of the next item\\?")) return title(q, q.end) == option;
    if (matches("What is the title of the most recent item\\?")) return title(q, q.end - 1) == option;
    if (matches("What is the title of the ([0-9]+)[a-z]+ most recent item\\?"))
      return title(q, nth_last(m[1])) == option;
    if (matches("What is the title of the ([0-9]+)[a-z]+ item in the history\\?")) return title(q, nth(m[1])) == option;
    if (matches("(?:Which|What is the) (.+) (?:does|of) the most recent item(?: have)?\\?"))
      return has(q, q.end - 1, m[1], option);
    if (matches("(?:Which|What is the) (.+) (?:does|of) the ([0-9]+)[a-z]+ most recent item(?: have)?\\?"))
      return has(q, nth_last(m[2]), m[1], option);
    if (matches("(?:Which|What is the) (.+) (?:does|of) the ([0-9]+)[a-z]+ item in the history(?: have)?\\?"))
      return has(q, nth(m[2]), m[1], option);
    if (matches("(?:Which|What will be the) (.+) (?:will|of) the next item(?: have)?\\?"))
      return has(q, q.end, m[1], option);
    if (matches("How many items are in the history\\?")) return std::to_string(q.end - q.begin) == option;
    if (matches("How many items in the history have (.+) (\\S+)\\?")) return count(q, m[1], m[2]) == option;
    if (matches("What are the user's 3 top values of (.+), in order\\?")) return top_three(q, m[1], ", ", option);
    if (matches("Which (.+) is among the user's top 3\\?")) return among_top_three(q, m[1], option);
    if (matches("Which (.+) is most frequent in the last ([0-9]+) items\\?"))
      return favourite(q, m[1], q.end - std::stol(m[2]), q.end) == option;
    if (matches("How did the user's favorite (.+) change over time\\?")) return path(q, m[1], " -> ", option);
    // Chinese
    if (matches("该用户下一个可能点击的商品的标题是什么？")) return title(q, q.end) == option;
    if (matches("该用户第([0-9]+)次浏览的商品的标题是什么？")) return title(q, nth(m[1])) == option;
    if (matches("该用户倒数第([0-9]+)次（从1开始计数）浏览的商品的标题是什么？"))
      return title(q, nth_last(m[1])) == option;
    if (matches("该用户第([0-9]+)次浏览的商品的(.+)(?:包含以下哪一个|是什么)？"))
      return has(q, nth(m[1]), m[2], option);
    if (matches("该用户倒数第([0-9]+)次（从1开始计数）浏览的商品的(.+)(?:包含以下哪一个|是什么)？"))
      return has(q, nth_last(m[1]), m[2], option);
    if (matches("该用户下一个可能点击的商品的(.+)(?:包含以下哪一个|是什么)？")) return has(q, q.end, m[1], option);
    if (matches("该用户浏览序列的长度是多少？")) return std::to_string(q.end - q.begin) == option;
    if (matches("该序列中(.+)为(.+)的商品有多少个？")) return count(q, m[1], m[2]) == option;
    if (matches("该用户最感兴趣的3个(.+)依次是什么？")) return top_three(q, m[1], "、", option);
    if (matches("以下哪一个属于该用户最感兴趣的3个(.+)？")) return among_top_three(q, m[1], option);
    if (matches("在最近([0-9]+)次浏览中，该用户近期最感兴趣的(.+)是什么？"))
      return favourite(q, m[2], q.end - std::stol(m[1]), q.end) == option;
    if (matches("该用户对(.+)偏好的转移路径是什么？")) return path(q, m[1], "→", option);
    throw std::runtime_error("the oracle does not understand: " + q.stem);
  }

 private:
  using Counts = std::map<std::string, int>;

  std::int32_t item(const Question& q, std::int64_t t) const {
    if (t < 0 || t >= view_.length(q.user)) throw std::runtime_error("asked about an interaction that is not there");
    return view_.item(q.user, t);
  }
  std::string title(const Question& q, std::int64_t t) const {
    return view_.catalog.titles.at(static_cast<std::size_t>(item(q, t)));
  }
  std::vector<std::string> values(const std::string& label, std::int32_t i) const {
    std::vector<std::string> texts;
    for (const auto& a : view_.catalog.attributes) {
      if (a.name != names_.at(label)) continue;
      for (const std::int32_t v : a.of(i)) texts.push_back(a.vocabulary.at(static_cast<std::size_t>(v)));
    }
    return texts;
  }
  bool has(const Question& q, std::int64_t t, const std::string& label, const std::string& option) const {
    const auto all = values(label, item(q, t));
    return std::find(all.begin(), all.end(), option) != all.end();
  }
  Counts counts(const Question& q, const std::string& label, std::int64_t begin, std::int64_t end) const {
    if (begin < q.begin) throw std::runtime_error("asked about more than the history shown");
    Counts result;
    for (std::int64_t t = begin; t < end; ++t) {
      for (const auto& value : values(label, item(q, t))) ++result[value];
    }
    return result;
  }
  std::string count(const Question& q, const std::string& label, const std::string& value) const {
    return std::to_string(counts(q, label, q.begin, q.end)[value]);
  }
  // The one value with the highest count, or "" for a tie.
  std::string favourite(const Question& q, const std::string& label, std::int64_t begin, std::int64_t end) const {
    const Counts all = counts(q, label, begin, end);
    int most = 0;
    for (const auto& [value, n] : all) most = std::max(most, n);
    std::string best;
    for (const auto& [value, n] : all) {
      if (n != most) continue;
      if (!best.empty()) return "";
      best = value;
    }
    return best;
  }
  bool top_three(const Question& q, const std::string& label, const std::string& joint,
                 const std::string& option) const {
    Counts all = counts(q, label, q.begin, q.end);
    std::string expected;
    int previous = -1;
    for (int i = 0; i < 3; ++i) {
      const auto best =
          std::max_element(all.begin(), all.end(), [](const auto& x, const auto& y) { return x.second < y.second; });
      if (best == all.end() || best->second == previous) throw std::runtime_error("the three most frequent are tied");
      previous = best->second;
      expected += (i > 0 ? joint : "") + best->first;
      all.erase(best);
    }
    for (const auto& [value, n] : all) {
      if (n == previous) throw std::runtime_error("the third place is tied");
    }
    return option == expected;
  }
  std::optional<bool> among_top_three(const Question& q, const std::string& label, const std::string& option) const {
    Counts all = counts(q, label, q.begin, q.end);
    int above = 0, at_least = 0;
    for (const auto& [value, n] : all) {
      if (n > all[option]) ++above;
      if (n >= all[option]) ++at_least;
    }
    if (above >= 3) return false;
    if (at_least <= 3 && all[option] > 0) return true;
    return std::nullopt;
  }
  bool path(const Question& q, const std::string& label, const std::string& joint, const std::string& option) const {
    const std::int64_t n = q.end - q.begin;
    std::string expected;
    for (std::int64_t third = 0; third < 3; ++third) {
      expected +=
          (third > 0 ? joint : "") + favourite(q, label, q.begin + n * third / 3, q.begin + n * (third + 1) / 3);
    }
    return option == expected;
  }

  const HistoryView& view_;
  std::map<std::string, std::string> names_;
  mutable std::map<std::string, std::regex> patterns_;
};

}  // namespace uqa::data
