// trainer/evaluate.h - answers the questions of a set with an aligned model and one kind of prompt; scores by four rules.
//
//   const auto result = run_evaluate({.run = "runs/align", .data = "ml-100k", .prompt = "soft"}, session.world());
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "data/batch.h"
#include "data/question.h"
#include "models/llm/generate.h"
#include "trainer/config.h"
#include "trainer/result.h"

namespace uqa::trainer {

struct EvaluateConfig {
  std::string run;                 ///< run directory of `uqa align`; required
  std::string data;                ///< directory written by `uqa import`; required
  std::string questions;           ///< question set; "": the one that the run was aligned with
  std::string split = "test";      ///< "test" or "train" questions
  std::string prompt = "soft";     ///< soft, none, text, shuffled, zero
  std::string output;              ///< "": <run>/eval/<prompt>-<questions digest>
  std::string dtype;               ///< "float32", "bf16"; "": as the run was trained
  std::int64_t batch_rows = 4096;  ///< most LLM rows of one forward pass; > 0
  std::int64_t shuffle_seed = 1;   ///< which permutation of users `shuffled` takes
  std::int64_t text_items = 32;    ///< most titles of a `text` prompt, newest first; > 0
  std::int64_t max_questions = 0;  ///< a fixed random subset of so many; 0: all
  std::int64_t max_new_tokens = 1; ///< most tokens of a generated answer, which ends with its turn; 1: the first token alone, as the reference; > 0
  double temperature = 0;          ///< 0: the most likely tokens; > 0: drawn from softmax(logits / temperature)
  std::int64_t sample_seed = 1;    ///< of the draws; they depend on it and the question alone
  bool audit_options = false;      ///< also with the options rotated 1, 2 and 3 places: result.details["option_audit"], see option_audit.h
  bool cache_responses = true;     ///< read and extend RUN/eval/responses.bin: what the same weights answered before is not asked again
  std::int64_t num_threads = 0;    ///< OpenMP threads of one rank; 0: cores of the host / ranks on it
  std::int64_t tp = 1;             ///< ranks that split each layer of encoder and LLM; > 0
  std::int64_t llm_tp = 0;         ///< of the LLM; 0: tp
  std::int64_t encoder_tp = 0;     ///< of the encoder; 0: tp
  bool overwrite = false;          ///< replace an earlier evaluation
  [[nodiscard]] ParallelConfig parallel() const;
  void validate() const;           ///< Error(kConfig) naming the field
  /// Without the tokens that end an answer.
  [[nodiscard]] models::GenerateOptions generate_options() const;
  [[nodiscard]] bool operator==(const EvaluateConfig&) const = default;
};

/// Directory that an evaluation with this config writes by default: "<run>/eval/<name>-<first 8 digits of the digest>"; <name> is the
/// prompt, with what differs from the defaults behind it ("shuffled.seed2", "text.items8", "soft.train", "soft.max100", "soft.new64.temperature0.7").
[[nodiscard]] fs::path evaluation_directory(const EvaluateConfig& config, const std::string& questions_digest);

/// For each question the history of another user: users are permuted without a fixed point, and the span is drawn from the other
/// user's own questions. Depends on the questions and the seed alone. Error(kConfig) with fewer than 2 users.
[[nodiscard]] std::vector<data::Span> shuffled_spans(const std::vector<data::Question>& questions, std::int64_t seed);

/// Answers, scores, writes predictions.jsonl and result.json (whole or not at all). Every rank of `world` must call it. The result does
/// not depend on the number of ranks. Throws Error(kRequeue) on a stop request; nothing is written then. Returns what result.json holds.
[[nodiscard]] EvaluationResult run_evaluate(const EvaluateConfig& config, const comm::Communicator& world);

/// Several evaluations of one model on the same questions, which may differ in text_items, shuffle_seed and output alone (else Error(kInternal)): it is loaded
/// once, and nothing is answered before all of them are known to be possible. Results in the order of `variants`.
[[nodiscard]] std::vector<EvaluationResult> run_evaluations(const std::vector<EvaluateConfig>& variants, const comm::Communicator& world);

/// The prior-only answerer as an evaluation: trained on the training questions, it answers the test questions without seeing any user, and
/// `output` becomes an evaluation directory (prompt "prior") that compares with others. One rank calls it. No LLM is needed.
EvaluationResult write_prior_evaluation(const fs::path& questions, const fs::path& output, bool overwrite);

}  // namespace uqa::trainer
