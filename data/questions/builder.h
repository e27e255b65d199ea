// data/questions/builder.h - personalized multiple-choice questions of the seven types, made from any imported data
// set, such that whoever does not see the user cannot do better than guess ("fair options").
// docs/design/0004-questions.md.
//
//   const auto report = build_questions(Dataset::open("ml-100k"), {.language = Language::kEnglish}, "questions");
//   for (const auto& [code, score] : report.prior_only) fmt::print("{} {:.3f}\n", code, score.accuracy);
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/json.h"
#include "data/question.h"
#include "data/questions/history_view.h"
#include "data/questions/prior_answerer.h"

namespace uqa::data {

enum class Language { kChinese, kEnglish };
[[nodiscard]] const char* code_of(Language language);              ///< "zh" "en"
[[nodiscard]] Language language_of_code(const std::string& code);  ///< Error(kConfig) if unknown

/// How often an accepted option set is asked.
enum class GoldChoice {
  kEachOption,  ///< four times in the same order, once with each option as gold, each time about another history: a
                ///< deterministic answerer that does not see the user is right exactly once in four
  kOneOption,   ///< once, with a gold option drawn uniformly
};

struct QuestionBuildOptions {
  Language language = Language::kEnglish;
  std::int64_t per_type_train = 3428;  ///< questions per type about train users; >= 4 (a multiple of 4 for kEachOption)
  std::int64_t per_type_test = 600;    ///< the same about test users
  double test_user_fraction = 0.3;     ///< share of users that only test questions are about; in (0, 1)
  std::uint64_t seed = 1;
  std::vector<std::string>
      attributes;                   ///< "name" or "name=label" (the word used in the text); empty: all of the catalogue
  std::int64_t max_len = 200;       ///< longest history shown, in interactions; in [min_history, 2^20]
  std::int64_t min_history = 5;     ///< shortest history shown; >= 5
  std::int64_t recent = 10;         ///< interactions that "recently" means; in [3, max_len]
  std::int64_t max_position = 5;    ///< "the k-th item" asks for k = 1 ... max_position; in [1, min_history]
  std::int64_t ends_per_user = 64;  ///< history ends drawn per user, shared by all types; >= 1
  std::int64_t max_histories =
      200000;  ///< bound on (user, history end) pairs per split: more users than fit are subsampled
  GoldChoice gold_choice = GoldChoice::kEachOption;
  void validate() const;  ///< throws Error(kConfig) naming the field
};

/// What was built; all of it is in questions.json too.
struct QuestionBuildReport {
  std::map<std::string, std::int64_t> train_counts, test_counts;  ///< by type code
  std::int64_t train_users = 0, test_users = 0;                   ///< users that questions are about
  std::map<std::string, PriorScore> prior_only;                   ///< by type code, and "all"
  std::vector<std::string> notes;                                 ///< what could not be made, and why
  double seconds = 0;
};

struct BuiltQuestions {
  std::vector<Question> train, test;
  std::vector<std::int64_t> train_users, test_users;  ///< all users of each side, asked about or not
  QuestionBuildReport report;
};

/// Called with (questions made so far, questions wanted).
using QuestionProgress = std::function<void(std::int64_t done, std::int64_t total)>;

/// Makes the questions in memory; the same view and options give the same questions. Throws Error(kConfig) for options
/// that are out of range or name an absent attribute, Error(kData) when the data set allows no question at all.
[[nodiscard]] BuiltQuestions make_questions(const HistoryView& view, const QuestionBuildOptions& options,
                                            const QuestionProgress& progress = {});

/// Makes the questions of `data` and writes questions.json, train.jsonl and test.jsonl as a directory that is whole or
/// absent; with them users_train.txt, users_valid.txt (a tenth of the train side) and users_test.txt, raw ids one a line, so that
/// pre-training can keep the users of test questions out (--data.split=files:...). One rank calls it. Throws as make_questions and OutputDir.
QuestionBuildReport build_questions(const Dataset& data, const QuestionBuildOptions& options, const fs::path& output,
                                    bool overwrite = false, const QuestionProgress& progress = {});
/// The same from a view.
QuestionBuildReport write_questions(const HistoryView& view, const QuestionBuildOptions& options,
                                    const fs::path& output, bool overwrite = false,
                                    const QuestionProgress& progress = {});

}  // namespace uqa::data
