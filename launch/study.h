// launch/study.h - the actions of `uqa study`, one file each: launch/study_<action>.cpp, listed in cmd_study.cpp.
//
// To add an action: write its Command in a file of its own, declare its maker here, add a line to study_actions().
#pragma once

#include <memory>
#include <vector>

#include "launch/command.h"

namespace uqa::launch {

/// Every action, in the order that `uqa study --help` lists them. Actions are Commands of Ranks::kSingle.
[[nodiscard]] const std::vector<CommandEntry>& study_actions();

std::unique_ptr<Command> make_study_plan();
std::unique_ptr<Command> make_study_run();
std::unique_ptr<Command> make_study_status();
std::unique_ptr<Command> make_study_fit();

}  // namespace uqa::launch
