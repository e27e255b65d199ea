#include "trainer/align_ask.h"

#include <array>

#include "trainer/question_scores.h"

namespace uqa::trainer {

std::map<std::string, double> ask_held_out_users(models::LlmImpl& llm, const AlignQuestions& questions, AlignUsers* users, const AskOptions& options,
                                                 const comm::Communicator& dp) {
  struct Count {
    std::int64_t n = 0, correct = 0;
  };
  std::array<Count, kRules.size()> counts{};
  std::int64_t asked = 0;
  comm::run_agreed(dp, [&] {
    const at::NoGradGuard no_grad;
    const auto letters = letter_tokens(questions.prompts());
    const auto stop_ids = stop_tokens(llm, questions.prompts());
    const bool has_reference = users != nullptr && users->average_user().defined();
    const auto batch_of = [&](const std::vector<std::size_t>& members) {
      return question_batch(questions.all(), questions.all_encoded(), members, letters, has_reference ? &questions.all_encoded() : nullptr);
    };
    std::vector<std::int64_t> rows;
    for (const auto& group : questions.asked()) rows.push_back(num_rows(batch_of(group).prompts));
    const auto parts = group_by_rows(rows, options.micro_rows);
    for (auto part = static_cast<std::size_t>(dp.rank()); part < parts.size(); part += static_cast<std::size_t>(dp.size())) {
      const auto members = members_of(questions.asked(), parts[part]);
      const auto batch = batch_of(members);
      const auto soft_SL = users == nullptr ? Tensor() : users->soft_tokens(users->load(members, batch.num_references()), {}, options.bf16);
      const auto scores = score_questions(llm, batch, soft_SL, {});
      for (std::size_t i = 0; i < members.size(); ++i) {
        const auto prediction = prediction_of(questions.all()[members[i]], questions.encoded(members[i]), scores.response(i), questions.prompts().tokenizer(), stop_ids,
                                              has_reference || users == nullptr);
        for (const auto& [rule, correct] : prediction.correct) {
          auto& count = counts[static_cast<std::size_t>(rule)];
          ++count.n;
          count.correct += correct ? 1 : 0;
        }
      }
      asked += static_cast<std::int64_t>(members.size());
    }
  });
  std::map<std::string, double> values;
  values["questions"] = static_cast<double>(comm::all_reduce(asked, comm::ReduceOp::kSum, dp));
  for (const Rule rule : kRules) {
    const auto& mine = counts[static_cast<std::size_t>(rule)];
    const auto n = comm::all_reduce(mine.n, comm::ReduceOp::kSum, dp), correct = comm::all_reduce(mine.correct, comm::ReduceOp::kSum, dp);
    if (n > 0) values[std::string(name_of(rule)) + "_accuracy"] = static_cast<double>(correct) / static_cast<double>(n);
  }
  return values;
}

}  // namespace uqa::trainer
