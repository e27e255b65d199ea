// `uqa study ACTION ...`: picks the action; everything else is in launch/study_*.cpp.
#include "core/error.h"
#include "core/text.h"
#include "launch/study.h"

namespace uqa::launch {
namespace {

std::string study_action_names() {
  std::string names;
  for (const auto& action : study_actions()) names += (names.empty() ? "" : ", ") + std::string(action.name);
  return names;
}

std::string study_summary() {
  std::string text = "scaling studies: many runs from one file\n\nActions (uqa study ACTION --help):";
  for (const auto& action : study_actions()) text += fmt::format("\n  {:<10} {}", action.name, action.summary);
  return text;
}

class StudyCommand final : public Command {
 public:
  OptionSet& options() override { return action_ ? action_->options() : options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kSingle; }
  [[nodiscard]] const std::vector<CommandEntry>* actions() const override { return &study_actions(); }

  bool parse(const std::vector<std::string>& words) override {
    const bool named = !words.empty() && !words.front().starts_with("-");
    if (!named) {
      for (const auto& word : words) {
        if (word == "--help" || word == "-h") return false;
      }
      UQA_FAIL(ErrorCode::kConfig, "uqa study needs an action first: {}; see uqa study --help", study_action_names());
    }
    std::vector<std::string> names;
    for (const auto& action : study_actions()) {
      names.emplace_back(action.name);
      if (words.front() == action.name) action_ = action.make();
    }
    UQA_CHECK(action_ != nullptr, ErrorCode::kConfig, "unknown action '{}' of uqa study{}; it has {}", words.front(), suggestion(words.front(), names),
              study_action_names());
    return action_->parse({words.begin() + 1, words.end()});
  }

  void run(comm::Session* session) override { action_->run(session); }

 private:
  std::unique_ptr<Command> action_;
  OptionSet options_{"study", study_summary(), "uqa study plan --study recipes/studies/widths.ini"};
};

}  // namespace

const std::vector<CommandEntry>& study_actions() {
  static const std::vector<CommandEntry> table{
      {"plan", "says what every run is and costs, before anything starts", make_study_plan},
      {"run", "runs what is not finished, here or on Slurm", make_study_run},
      {"status", "shows how far every run is", make_study_status},
      {"fit", "fits scaling laws to the runs, or to any table of runs", make_study_fit},
  };
  return table;
}

std::unique_ptr<Command> make_study_command() { return std::make_unique<StudyCommand>(); }

}  // namespace uqa::launch
