#include <algorithm>
#include <cmath>
#include <cstdio>

#include "launch/bind.h"
#include "launch/command.h"
#include "trainer/compare.h"
#include "trainer/result.h"

namespace uqa::launch {
namespace {

/// Mean over evaluations of the same questions (seeds, shuffles): counts are averaged, so intervals keep one evaluation's width.
trainer::EvaluationResult mean_of(const std::vector<trainer::EvaluationResult>& results) {
  auto mean = results.front();
  const double count = static_cast<double>(results.size());
  const auto average = [&](trainer::Accuracy& into, auto&& pick) {
    double sum = 0;
    for (const auto& result : results) sum += static_cast<double>(pick(result).correct);
    into.correct = std::llround(sum / count);
  };
  for (auto& [rule, rows] : mean.rules) {
    for (auto& [code, accuracy] : rows.types) average(accuracy, [&, r = rule, c = code](const auto& x) { return x.rules.at(r).types.at(c); });
    for (auto& [name, accuracy] : rows.dimensions) average(accuracy, [&, r = rule, c = name](const auto& x) { return x.rules.at(r).dimensions.at(c); });
    average(rows.all, [&, r = rule](const auto& x) { return x.rules.at(r).all; });
    rows.macro = 0;
    for (const auto& result : results) rows.macro += result.rules.at(rule).macro / count;
  }
  mean.questions_per_s = 0;
  for (const auto& result : results) mean.questions_per_s += result.questions_per_s / count;
  return mean;
}

class CompareCommand final : public Command {
 public:
  CompareCommand() {
    options_.add("evaluations", &words_, "evaluation directories, DIR or NAME=DIR; equal names are averaged; the first is tested against each other one",
                 OptionSet::kRequired);
    options_.set_positional("evaluations");
    options_.add("permutations", &compare_.num_permutations, "of the sign-flip test by user (> 0)");
    options_.add("seed", &compare_.seed, "of the permutations");
    options_.add("output", &output_, "JSON file to write: table, intervals and tests");
    bind(options_, call_);
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kSingle; }

  void run(comm::Session*) override {
    apply(call_);
    compare_.validate();
    const auto arms = read_arms();
    UQA_CHECK(arms.size() >= 2, ErrorCode::kConfig, "compare got {} evaluation{}, needs at least two different ones", arms.size(),
              arms.size() == 1 ? "" : "s");
    UQA_CHECK(output_.empty() || call_.overwrite || !fs::exists(output_), ErrorCode::kConfig,
              "--output = {} exists; give another path or --overwrite", output_);
    std::vector<std::pair<std::string, trainer::EvaluationResult>> columns;
    Json evaluations = Json::array();
    for (const auto& arm : arms) {
      std::vector<trainer::EvaluationResult> results;
      Json directories = Json::array();
      for (const auto& directory : arm.directories) {
        results.push_back(trainer::read_result(directory));
        directories.push_back({{"directory", directory.string()}, {"result", trainer::to_json(results.back())}});
      }
      columns.emplace_back(arm.name, mean_of(results));
      evaluations.push_back({{"name", arm.name}, {"mean", trainer::to_json(columns.back().second)}, {"evaluations", directories}});
    }
    const auto report = trainer::compare(arms.front(), {arms.begin() + 1, arms.end()}, compare_);
    for (const auto rule : trainer::kRules) {
      if (columns.front().second.rules.contains(rule)) std::printf("\n%s", trainer::render_table(columns, rule).c_str());
    }
    std::printf("\n%s", trainer::render(report).c_str());
    if (!output_.empty()) {
      const Json all = {{"evaluations", evaluations}, {"comparisons", trainer::to_json(report)}};
      write_file_atomic(output_, all.dump(1) + "\n");
      std::printf("\nwritten to %s\n", output_.c_str());
    }
  }

 private:
  [[nodiscard]] std::vector<trainer::CompareArm> read_arms() const {
    std::vector<trainer::CompareArm> arms;
    for (const auto& word : words_) {
      const auto equals = word.find('=');
      const fs::path directory = equals == std::string::npos ? word : word.substr(equals + 1);
      const std::string name = equals == std::string::npos ? word : word.substr(0, equals);
      const auto at = std::find_if(arms.begin(), arms.end(), [&](const auto& arm) { return arm.name == name; });
      if (at != arms.end()) {
        at->directories.push_back(directory);
      } else {
        arms.push_back({.name = name, .directories = {directory}});
      }
    }
    return arms;
  }

  std::vector<std::string> words_;
  trainer::CompareOptions compare_;
  std::string output_;
  CallSettings call_;
  OptionSet options_{"compare", "tests whether evaluations of the same questions differ: paired permutation by user, exact McNemar, Holm",
                     "uqa compare soft=runs/a/eval/soft-1a2b3c4d none=runs/a/eval/none-1a2b3c4d --output result.json"};
};

}  // namespace

std::unique_ptr<Command> make_compare_command() { return std::make_unique<CompareCommand>(); }

}  // namespace uqa::launch
