// trainer/align_ask.h - questions asked while an alignment learns; private to trainer/.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "comm/communicator.h"
#include "trainer/align_questions.h"
#include "trainer/align_users.h"

namespace uqa::trainer {

struct AskOptions {
  std::int64_t micro_rows = 2048;  ///< most LLM rows of one pass
  bool bf16 = false;               ///< the encoder's matrix products, where it is trained
};

/// Asks questions.asked() as `uqa evaluate` would: "questions" and, for each rule that applies, "<rule>_accuracy" over those it applies to. `users` is null for prompt
/// "none". Modules are in eval mode. Collective over `dp`, errors are agreed; ranks that split a layer ask the same questions. Counts are
/// integers, so the result does not depend on the number of ranks.
[[nodiscard]] std::map<std::string, double> ask_held_out_users(models::LlmImpl& llm, const AlignQuestions& questions, AlignUsers* users, const AskOptions& options,
                                                               const comm::Communicator& dp);

}  // namespace uqa::trainer
