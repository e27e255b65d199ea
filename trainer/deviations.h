// trainer/deviations.h - how a run differs from the reference implementation. Every difference has an id; docs/deviations.md explains each.
//
//   Deviations list;
//   if (config.objective != "chat") list.add("answer-loss", "only the answer carries loss; ...");
//   info["deviations"] = list.to_json();
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/json.h"

namespace uqa::trainer {

struct Deviation {
  std::string id;    ///< one of known_deviations()
  std::string text;  ///< what this run does; what the reference does
};

class Deviations {
 public:
  /// Error(kInternal) for an id that known_deviations() does not list, or that is there already.
  void add(const std::string& id, std::string text);
  [[nodiscard]] const std::vector<Deviation>& list() const { return list_; }
  [[nodiscard]] bool has(const std::string& id) const;
  /// [{"id": ..., "text": ...}], as run.json holds them under "deviations".
  [[nodiscard]] Json to_json() const;
  /// One line each at level info, after a line with their number.
  void print(const std::string& stage) const;

 private:
  std::vector<Deviation> list_;
};

/// Every id that a run can print.
[[nodiscard]] std::span<const char* const> known_deviations();

}  // namespace uqa::trainer
