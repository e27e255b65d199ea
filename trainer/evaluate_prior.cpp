// The answerer that sees no user, as an evaluation directory.
#include <cmath>

#include "core/clock.h"
#include "core/error.h"
#include "data/questions/prior_answerer.h"
#include "trainer/evaluate.h"

namespace uqa::trainer {

EvaluationResult write_prior_evaluation(const fs::path& questions, const fs::path& output, bool overwrite) {
  const auto set = data::read_questions(questions);
  UQA_CHECK(!set.train.empty() && !set.test.empty(), ErrorCode::kData, "questions {} hold {} training and {} test questions, both are needed; build them again",
            questions.string(), set.train.size(), set.test.size());
  if (output.has_parent_path()) fs::create_directories(output.parent_path());
  OutputDir directory(output, {.kind = "uqa.evaluation", .overwrite = overwrite});
  const auto answerer = data::PriorAnswerer::train(set.train);
  const auto begin = Clock::now();
  std::vector<Prediction> predictions;
  std::string lines;
  for (const auto& question : set.test) {
    Prediction prediction{.question = question.text,
                          .prediction = std::string(1, static_cast<char>('A' + static_cast<int>(answerer.answer(question)))),
                          .answer = question.answer,
                          .type = data::code_of(question.type),
                          .user = question.user,
                          .id = question.id,
                          .letter_nats = {},
                          .text_nats = {},
                          .calibrated_nats = {},
                          .correct = {}};
    for (const double probability : answerer.probabilities(question)) prediction.text_nats.push_back(std::log(std::max(probability, 1e-300)));
    prediction.letter_nats = prediction.calibrated_nats = prediction.text_nats;
    judge(prediction, static_cast<std::int64_t>(question.gold()));
    lines += to_json(prediction).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    predictions.push_back(std::move(prediction));
  }
  const double seconds = seconds_since(begin);
  EvaluationResult result{.prompt = "prior",
                          .questions_digest = set.digest,
                          .rules = count_correct(predictions),
                          .input_tokens_per_question = 0,
                          .questions_per_s = static_cast<double>(predictions.size()) / std::max(seconds, 1e-9),
                          .details = {{"questions", predictions.size()}, {"split", "test"}, {"data_digest", set.data_digest}, {"seconds", seconds}}};
  if (set.manifest.contains("prior_only")) result.details["prior_only"] = set.manifest.at("prior_only");
  write_file_atomic(directory.path() / "predictions.jsonl", lines);
  write_file_atomic(directory.path() / "result.json", to_json(result).dump(2) + "\n");
  directory.commit();
  return result;
}

}  // namespace uqa::trainer
