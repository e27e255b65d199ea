#include "launch/pages.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/text.h"

namespace uqa::launch {
namespace {

std::string names_of(const std::vector<CommandEntry>& entries) {
  std::vector<std::string> names;
  for (const auto& entry : entries) names.emplace_back(entry.name);
  return fmt::format("{}", fmt::join(names, " "));
}

std::string option_words(Command& command) {
  std::string words = "--help";
  for (const auto& info : command.options().infos()) words += fmt::format(" --{}", info.name);
  return words;
}

/// Text as roff prints it: hyphens that can be copied, no line that starts a request.
std::string roff(const std::string& text) {
  std::string out;
  bool line_begins = true;
  for (const char c : text) {
    if (line_begins && (c == '.' || c == '\'')) out += "\\&";
    if (c == '\\') out += "\\e";
    else if (c == '-') out += "\\-";
    else out += c;
    line_begins = c == '\n';
  }
  return out;
}

void append_options(std::string& page, OptionSet& options) {
  for (const auto& info : options.infos()) {
    page += fmt::format(".TP\n\\fB{}\\fR{}\n", roff(fmt::format("--{}", info.name)), info.is_switch ? "" : info.is_list ? " \\fIVALUE...\\fR" : " \\fIVALUE\\fR");
    std::string help = info.help;
    if (info.required) help += " (required)";
    else if (!info.is_switch && !info.default_text.empty()) help += fmt::format(" [{}]", info.default_text);
    page += fmt::format("{}\n", roff(help));
  }
}

void append_command(std::string& page, const std::string& name, const CommandEntry& entry) {
  const auto command = entry.make();
  if (const auto* actions = command->actions(); actions != nullptr) {
    for (const auto& action : *actions) append_command(page, fmt::format("{} {}", name, action.name), action);
    return;
  }
  auto& options = command->options();
  page += fmt::format(".SH \"{}\"\n{}.\n.PP\n.EX\n{}\n.EE\n", roff(fmt::format("uqa {}", name)), roff(options.summary()), roff(options.example()));
  append_options(page, options);
}

}  // namespace

std::string bash_completion(const std::vector<CommandEntry>& entries) {
  std::string cases;
  for (const auto& entry : entries) {
    const auto command = entry.make();
    if (const auto* actions = command->actions(); actions != nullptr) {
      cases += fmt::format("    \"{} \"*)\n      first=2\n      case \"$action\" in\n", entry.name);
      for (const auto& action : *actions) cases += fmt::format("        {}) words=\"{}\" ;;\n", action.name, option_words(*action.make()));
      cases += fmt::format("        *) words=\"{}\" ;;\n      esac ;;\n", names_of(*actions));
    } else {
      cases += fmt::format("    \"{} \"*) words=\"{}\" ;;\n", entry.name, option_words(*command));
    }
  }
  return fmt::format(
      R"(# bash completion of uqa; made by `uqa completion bash`
_uqa() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]:-}} action=${{COMP_WORDS[2]:-}} words="" first=1
  COMPREPLY=()
  if [ "$COMP_CWORD" -le 1 ]; then
    COMPREPLY=($(compgen -W "{} --help" -- "$current"))
    return
  fi
  case "$command $action" in
{}  esac
  if [[ $current == -* || $COMP_CWORD -le $first ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  else
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}}
complete -o filenames -F _uqa uqa
)",
      names_of(entries), cases);
}

std::string zsh_completion(const std::vector<CommandEntry>& entries) {
  return fmt::format("# zsh completion of uqa; made by `uqa completion zsh`\nautoload -Uz compinit bashcompinit && compinit && bashcompinit\n{}", bash_completion(entries));
}

std::string man_page(const std::vector<CommandEntry>& entries) {
  std::string page =
      ".TH UQA 1 \"\" \"uqa\" \"User commands\"\n"
      ".SH NAME\n"
      "uqa \\- pre\\-train user encoders, align them to an LLM, and measure how well a user embedding replaces the history\n"
      ".SH SYNOPSIS\n"
      "\\fBuqa\\fR \\fICOMMAND\\fR [\\fIoptions\\fR]\n.br\n"
      "\\fBmpirun\\fR \\-np \\fIN\\fR \\fBuqa\\fR \\fICOMMAND\\fR [\\fIoptions\\fR]\n"
      ".SH DESCRIPTION\n"
      "Options without a dot are inputs of a command; dotted ones are settings, grouped as in a configuration file, where they stand in sections: "
      "\\fB\\-\\-optim.peak_lr 1e\\-3\\fR is \\fBpeak_lr = 1e\\-3\\fR under \\fB[optim]\\fR. The command line wins over \\fB\\-\\-config\\fR, and that over the defaults, "
      "which stand in brackets below. Unknown names are errors that suggest the nearest.\n"
      ".SH COMMANDS\n";
  for (const auto& entry : entries) page += fmt::format(".TP\n\\fB{}\\fR\n{}\n", roff(entry.name), roff(entry.summary));
  for (const auto& entry : entries) append_command(page, entry.name, entry);
  page +=
      ".SH \"EXIT STATUS\"\n"
      "0 done; 2 configuration; 3 data; 4 communication; 5 a number that is not finite; 75 stopped on request with a checkpoint written: run the same command "
      "again; 70 internal error.\n"
      ".SH SIGNALS\n"
      "SIGUSR1 and SIGTERM ask a training or evaluation to save and exit with 75. mpirun and srun forward SIGUSR1.\n";
  return page;
}

}  // namespace uqa::launch
