// data/questions/wording.h - stems, options and the whole user message, in Chinese (as the official scorer recognises
// it) and English.
#pragma once

#include <string>
#include <vector>

#include "data/questions/builder.h"
#include "data/questions/facts.h"

namespace uqa::data {

/// The question without its options.
[[nodiscard]] std::string stem_text(const FactFinder& finder, const Slot& slot, Language language, std::int64_t recent);
/// How `value` reads as an option; line breaks become spaces.
[[nodiscard]] std::string option_text(const FactFinder& finder, const Slot& slot, std::uint64_t value,
                                      Language language);
/// Stem, one line per option, and how to answer.
[[nodiscard]] std::string message_text(const std::string& stem, const std::vector<std::string>& options,
                                       Language language);

}  // namespace uqa::data
