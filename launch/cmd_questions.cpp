#include <cstdio>

#include "core/progress.h"
#include "data/dataset.h"
#include "data/questions/builder.h"
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
    options_.add("max_len", &build_.max_len, "longest history, in interactions");
    options_.add("min_history", &build_.min_history, "shortest history, in interactions (>= 5)");
    options_.add("recent", &build_.recent, "interactions that 'recently' means");
    bind(options_, call_);
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kSingle; }

  void run(comm::Session*) override {
    apply(call_);
    constexpr std::int64_t kTypes = 7;
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

 private:
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

  std::string data_, output_, language_ = "en";
  std::int64_t train_ = 24'000, test_ = 4'200, seed_ = 1;
  data::QuestionBuildOptions build_;
  CallSettings call_;
  OptionSet options_{"questions", "builds fair multiple-choice questions of the seven types from a data set",
                     "uqa questions --data data/ml-100k --output questions --language en --train 24000 --test 4200"};
};

}  // namespace

std::unique_ptr<Command> make_questions_command() { return std::make_unique<QuestionsCommand>(); }

}  // namespace uqa::launch
