#include <algorithm>
#include <cstdio>

#include "core/progress.h"
#include "data/dataset.h"
#include "data/questions/builder.h"
#include "data/questions/published.h"
#include "launch/bind.h"
#include "launch/command.h"

namespace uqa::launch {
namespace {

class QuestionsCommand final : public Command {
 public:
  QuestionsCommand() {
    options_.add("data", &data_, "imported data set (directory of uqa import)", OptionSet::kRequired);
    options_.add("output", &output_, "question directory to make", OptionSet::kRequired);
    options_.add("language", &language_, "en or zh (wording that the official scorer recognises)");
    options_.add("train", &train_, "training questions in all, spread evenly over the seven types (>= 28)");
    options_.add("test", &test_, "test questions in all, about users that no training question is about (>= 28)");
    options_.add("test_user_fraction", &build_.test_user_fraction, "share of the users kept for test questions, in (0, 1)");
    options_.add("seed", &seed_, "chooses users, histories and options");
    options_.add("attributes", &build_.attributes, "item attributes to ask about, NAME or NAME=WORD; empty: all");
    options_.add("max_len", &build_.max_len, "longest history, in interactions (--published: 512 by default)");
    options_.add("min_history", &build_.min_history, "shortest history, in interactions (>= 5)");
    options_.add("recent", &build_.recent, "interactions that 'recently' means");
    options_.add("gold", &gold_, "each: every option list is asked four times, once with each option as gold; one: once, gold drawn uniformly");
    options_.add("published", &published_, "instead of building: the two published Arrow files (train, eval) that --data was imported from");
    options_.add("published_first_row", &first_row_, "rows that the import read before the first published file");
    bind(options_, call_);
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kSingle; }

  void run(comm::Session*) override {
    apply(call_);
    if (!published_.empty()) {
      import_published();
      return;
    }
    UQA_CHECK(first_row_ == 0, ErrorCode::kConfig, "--published_first_row = {}, goes with --published; give both or neither", first_row_);
    build();
  }

 private:
  void build() {
    constexpr std::int64_t kTypes = 7;
    UQA_CHECK(gold_ == "each" || gold_ == "one", ErrorCode::kConfig, "--gold = {}, must be each or one", gold_);
    build_.gold_choice = gold_ == "each" ? data::GoldChoice::kEachOption : data::GoldChoice::kOneOption;
    UQA_CHECK(train_ >= 4 * kTypes && test_ >= 4 * kTypes, ErrorCode::kConfig, "--train = {}, --test = {}, both must be at least {}", train_, test_,
              4 * kTypes);
    UQA_CHECK(seed_ >= 0, ErrorCode::kConfig, "--seed = {}, must be 0 or more", seed_);
    build_.language = data::language_of_code(language_);
    build_.per_type_train = train_ / kTypes / 4 * 4;
    build_.per_type_test = test_ / kTypes / 4 * 4;
    build_.seed = static_cast<std::uint64_t>(seed_);
    build_.validate();
    const auto dataset = data::Dataset::open(data_);
    std::unique_ptr<Progress> progress;
    std::int64_t last = 0;
    const auto report = data::build_questions(dataset, build_, output_, call_.overwrite, [&](std::int64_t done, std::int64_t total) {
      if (!progress) progress = std::make_unique<Progress>("questions", total, "questions");
      progress->advance(done - last);
      last = done;
    });
    if (progress) progress->finish();
    print(report);
  }

  void import_published() {
    UQA_CHECK(published_.size() == 2, ErrorCode::kConfig, "--published has {} files, must be two: train and eval", published_.size());
    for (const auto& name : options_.given()) {
      const bool used = name == "data" || name == "output" || name == "max_len" || name.starts_with("published");
      UQA_CHECK(used, ErrorCode::kConfig, "--{} chooses how questions are built, and --published takes them as they are; leave one of them out", name);
    }
    const auto given = options_.given();
    const bool as_published = std::ranges::find(given, "max_len") == given.end();
    const auto dataset = data::Dataset::open(data_);
    const data::PublishedQuestionFiles files{.train = published_[0], .eval = published_[1], .first_row = first_row_};
    const auto report = as_published ? data::import_published_questions(dataset, files, output_, call_.overwrite)
                                : data::import_published_questions(dataset, files, output_, call_.overwrite, build_.max_len);
    std::printf("%lld training questions, %lld test questions, %lld left out with their users, written to %s\n", static_cast<long long>(report.num_train),
                static_cast<long long>(report.num_test), static_cast<long long>(report.without_user), output_.c_str());
  }

  void print(const data::QuestionBuildReport& report) const {
    std::printf("%-5s %8s %8s   prior-only answerer [95 %% interval]\n", "type", "train", "test");
    for (const auto& [code, score] : report.prior_only) {
      const auto count = [&](const std::map<std::string, std::int64_t>& counts) {
        const auto at = counts.find(code);
        if (at != counts.end()) return at->second;
        std::int64_t sum = 0;
        for (const auto& [type, n] : counts) sum += n;
        return sum;
      };
      std::printf("%-5s %8lld %8lld   %.4f [%.4f, %.4f]%s\n", code.c_str(), static_cast<long long>(count(report.train_counts)),
                  static_cast<long long>(count(report.test_counts)), score.accuracy, score.low, score.high,
                  score.low <= 0.25 && 0.25 <= score.high ? "" : "  25 % is outside: options leak");
    }
    for (const auto& note : report.notes) std::printf("note: %s\n", note.c_str());
    std::printf("%lld train users, %lld test users, %.1f s, written to %s\n", static_cast<long long>(report.train_users),
                static_cast<long long>(report.test_users), report.seconds, output_.c_str());
  }

  std::string data_, output_, language_ = "en", gold_ = "each";
  std::vector<std::string> published_;
  std::int64_t first_row_ = 0;
  std::int64_t train_ = 24'000, test_ = 4'200, seed_ = 1;
  data::QuestionBuildOptions build_;
  CallSettings call_;
  OptionSet options_{"questions", "builds fair multiple-choice questions of the seven types from a data set",
                     "uqa questions --data data/ml-100k --output questions --language en --train 24000 --test 4200"};
};

}  // namespace

std::unique_ptr<Command> make_questions_command() { return std::make_unique<QuestionsCommand>(); }

}  // namespace uqa::launch
