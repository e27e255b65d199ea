// `uqa completion bash|zsh` and `uqa man`.
#include <cstdio>

#include "core/error.h"
#include "core/text.h"
#include "launch/command.h"
#include "launch/pages.h"

namespace uqa::launch {
namespace {

class CompletionCommand final : public Command {
 public:
  CompletionCommand() {
    options_.add("shell", &shell_, "bash or zsh", OptionSet::kRequired);
    options_.set_positional("shell");
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kSingle; }
  void run(comm::Session*) override {
    UQA_CHECK(shell_ == "bash" || shell_ == "zsh", ErrorCode::kConfig, "shell = {}, must be bash or zsh{}", shell_, suggestion(shell_, {"bash", "zsh"}));
    std::fputs((shell_ == "bash" ? bash_completion(commands()) : zsh_completion(commands())).c_str(), stdout);
  }

 private:
  std::string shell_;
  OptionSet options_{"completion", "prints completions of commands and options for a shell", "source <(uqa completion bash)"};
};

class ManCommand final : public Command {
 public:
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kSingle; }
  void run(comm::Session*) override { std::fputs(man_page(commands()).c_str(), stdout); }

 private:
  OptionSet options_{"man", "prints the manual page, made of the options of every command", "uqa man > uqa.1 && man -l uqa.1"};
};

}  // namespace

std::unique_ptr<Command> make_completion_command() { return std::make_unique<CompletionCommand>(); }
std::unique_ptr<Command> make_man_command() { return std::make_unique<ManCommand>(); }

}  // namespace uqa::launch
