// launch/pages.h - texts made of the options themselves, so that they cannot say anything else: shell completions and the manual page.
#pragma once

#include <string>
#include <vector>

#include "launch/command.h"

namespace uqa::launch {

/// A bash function `_uqa` and its registration. Source it.
[[nodiscard]] std::string bash_completion(const std::vector<CommandEntry>& entries);
/// The same for zsh, through its bashcompinit.
[[nodiscard]] std::string zsh_completion(const std::vector<CommandEntry>& entries);
/// uqa(1) in man's roff, one section a command.
[[nodiscard]] std::string man_page(const std::vector<CommandEntry>& entries);

}  // namespace uqa::launch
