#include "data/questions/builder.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <unordered_set>
#include <utility>

#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "core/random.h"
#include "data/questions/question_files.h"
#include "data/questions/sampler.h"

namespace uqa::data {

namespace {

constexpr std::int64_t kOptionsPerQuestion = 4;

std::vector<AttributeChoice> choose_attributes(const ItemCatalog& catalog, const std::vector<std::string>& wanted) {
  std::vector<AttributeChoice> chosen;
  std::string known;
  for (std::size_t i = 0; i < catalog.attributes.size(); ++i) {
    const std::string& name = catalog.attributes[i].name;
    known += (known.empty() ? "" : ", ") + name;
    if (wanted.empty()) {
      std::string label = name;
      std::replace(label.begin(), label.end(), '_', ' ');
      chosen.push_back({i, label});
    }
  }
  for (const std::string& text : wanted) {
    const std::size_t equals = text.find('=');
    const std::string name = text.substr(0, equals),
                      label = equals == std::string::npos ? name : text.substr(equals + 1);
    const auto it = std::find_if(catalog.attributes.begin(), catalog.attributes.end(),
                                 [&](const auto& a) { return a.name == name; });
    UQA_CHECK(it != catalog.attributes.end(), ErrorCode::kConfig,
              "attributes = '{}', must be among those of the data set: {}", text,
              known.empty() ? "it has none" : known);
    UQA_CHECK(!label.empty(), ErrorCode::kConfig, "attributes = '{}', needs a word after '='", text);
    chosen.push_back({static_cast<std::size_t>(it - catalog.attributes.begin()), label});
  }
  return chosen;
}

// Orders numbers by a keyed hash: a seeded subset that does not depend on how many are taken.
std::vector<std::int64_t> shuffled(std::vector<std::int64_t> numbers, std::uint64_t key) {
  const auto rank = [key](std::int64_t n) { return std::pair(mix_key(key, static_cast<std::uint64_t>(n)), n); };
  std::sort(numbers.begin(), numbers.end(), [&](std::int64_t a, std::int64_t b) { return rank(a) < rank(b); });
  return numbers;
}

struct Split {
  std::vector<History> histories;
  std::int64_t num_users = 0;
};

// Draws history ends; all types share them, so that few (user, end) pairs need an embedding.
Split draw_histories(const HistoryView& view, std::vector<std::int64_t> users, const QuestionBuildOptions& options,
                     std::uint64_t key) {
  Split split;
  if (std::ssize(users) > options.max_histories) users.resize(static_cast<std::size_t>(options.max_histories));
  std::sort(users.begin(), users.end());
  split.num_users = std::ssize(users);
  const std::int64_t per_user =
      std::min(options.ends_per_user,
               std::max<std::int64_t>(1, options.max_histories / std::max<std::int64_t>(1, split.num_users)));
  for (const std::int64_t user : users) {
    const std::int64_t num_ends = view.length(user) - options.min_history + 1;
    const Permutation order(static_cast<std::uint64_t>(num_ends), mix_key(key, static_cast<std::uint64_t>(user)));
    for (std::int64_t i = 0; i < std::min(per_user, num_ends); ++i) {
      const std::int64_t end = options.min_history + static_cast<std::int64_t>(order(static_cast<std::uint64_t>(i)));
      split.histories.push_back({static_cast<std::int32_t>(user), static_cast<std::int32_t>(end)});
    }
  }
  return split;
}

Json options_json(const QuestionBuildOptions& o, const std::vector<AttributeChoice>& attributes,
                  const ItemCatalog& catalog) {
  Json names = Json::array();
  for (const AttributeChoice& a : attributes) names.push_back(catalog.attributes[a.index].name + "=" + a.label);
  return Json{{"per_type_train", o.per_type_train},
              {"per_type_test", o.per_type_test},
              {"test_user_fraction", o.test_user_fraction},
              {"seed", o.seed},
              {"attributes", names},
              {"max_len", o.max_len},
              {"min_history", o.min_history},
              {"recent", o.recent},
              {"max_position", o.max_position},
              {"ends_per_user", o.ends_per_user},
              {"max_histories", o.max_histories},
              {"gold_choice", o.gold_choice == GoldChoice::kEachOption ? "each_option" : "one_option"}};
}

std::int64_t count_users(const std::vector<Question>& questions) {
  std::unordered_set<std::int64_t> users;
  for (const Question& q : questions) users.insert(q.user);
  return std::ssize(users);
}

}  // namespace

const char* code_of(Language language) { return language == Language::kChinese ? "zh" : "en"; }

Language language_of_code(const std::string& code) {
  if (code == "zh") return Language::kChinese;
  UQA_CHECK(code == "en", ErrorCode::kConfig, "language = '{}', must be zh or en", code);
  return Language::kEnglish;
}

void QuestionBuildOptions::validate() const {
  const std::int64_t least = gold_choice == GoldChoice::kEachOption ? kOptionsPerQuestion : 1;
  for (const auto& [name, value] :
       {std::pair("per_type_train", per_type_train), std::pair("per_type_test", per_type_test)}) {
    UQA_CHECK(
        value >= 4 && value % least == 0, ErrorCode::kConfig,
        "{} = {}, must be a positive multiple of 4, since every option set is asked with each of its options as gold",
        name, value);
  }
  UQA_CHECK(test_user_fraction > 0 && test_user_fraction < 1, ErrorCode::kConfig,
            "test_user_fraction = {}, must be between 0 and 1", test_user_fraction);
  UQA_CHECK(min_history >= 5, ErrorCode::kConfig, "min_history = {}, must be at least 5", min_history);
  UQA_CHECK(max_len >= min_history && max_len <= (std::int64_t{1} << 20), ErrorCode::kConfig,
            "max_len = {}, must be in [min_history = {}, 1048576]", max_len, min_history);
  UQA_CHECK(recent >= 3 && recent <= max_len, ErrorCode::kConfig, "recent = {}, must be in [3, max_len = {}]", recent,
            max_len);
  UQA_CHECK(max_position >= 1 && max_position <= min_history, ErrorCode::kConfig,
            "max_position = {}, must be in [1, min_history = {}]", max_position, min_history);
  UQA_CHECK(ends_per_user >= 1, ErrorCode::kConfig, "ends_per_user = {}, must be at least 1", ends_per_user);
  UQA_CHECK(max_histories >= 1 && max_histories < (std::int64_t{1} << 31), ErrorCode::kConfig,
            "max_histories = {}, must be in [1, 2147483647]", max_histories);
}

HistoryView view_of(const Dataset& data) {
  HistoryView view;
  view.items.reserve(static_cast<std::size_t>(data.num_interactions()));
  for (std::int64_t user = 0; user < data.num_users(); ++user) {
    view.add_user(data.values(0, user, 0, data.length(user)));
    view.raw_user_ids.emplace_back(data.raw_user_id(user));
  }
  view.catalog = data.items();
  view.digest = data.digest();
  return view;
}

BuiltQuestions make_questions(const HistoryView& view, const QuestionBuildOptions& options,
                              const QuestionProgress& progress) {
  options.validate();
  const auto started = Clock::now();
  BuiltQuestions built;
  QuestionBuildReport& report = built.report;
  FactFinder finder(view, choose_attributes(view.catalog, options.attributes),
                    {.max_len = options.max_len, .recent = options.recent, .max_position = options.max_position});

  std::vector<std::int64_t> users;
  for (std::int64_t user = 0; user < view.num_users(); ++user) {
    if (view.length(user) > options.min_history) users.push_back(user);
  }
  const std::int64_t too_short = view.num_users() - std::ssize(users);
  if (too_short > 0) {
    report.notes.push_back(
        fmt::format("{} of {} users have no more than min_history = {} interactions and are not asked about", too_short,
                    view.num_users(), options.min_history));
  }
  UQA_CHECK(users.size() >= 2, ErrorCode::kData,
            "{} users have more than min_history = {} interactions, at least 2 are needed; lower min_history",
            users.size(), options.min_history);
  users = shuffled(std::move(users), stream_key(options.seed, "questions/split"));
  const std::int64_t num_test =
      std::clamp<std::int64_t>(std::llround(std::ceil(options.test_user_fraction * static_cast<double>(users.size()))),
                               1, std::ssize(users) - 1);
  const std::vector<std::int64_t> test_users(users.begin(), users.begin() + num_test),
      train_users(users.begin() + num_test, users.end());

  const std::int64_t total = std::ssize(kQuestionTypes) * (options.per_type_train + options.per_type_test);
  std::int64_t done = 0;
  const auto advance = [&](std::int64_t n) {
    done += n;
    if (progress) progress(done, total);
  };
  std::int64_t next_id = 0;
  const auto make_split = [&](const std::string& name, const std::vector<std::int64_t>& members, std::int64_t wanted,
                              std::map<std::string, std::int64_t>& counts) {
    const Split split = draw_histories(view, members, options, stream_key(options.seed, "questions/ends/" + name));
    if (split.num_users < std::ssize(members)) {
      report.notes.push_back(fmt::format("{}: {} of {} users were drawn, as max_histories = {}", name, split.num_users,
                                         members.size(), options.max_histories));
    }
    std::vector<Question> questions;
    for (const QuestionType type : kQuestionTypes) {
      auto some =
          sample_questions({finder, split.histories, options}, type, wanted,
                           stream_key(options.seed, fmt::format("questions/{}/{}", name, code_of(type))), advance);
      counts[code_of(type)] = std::ssize(some);
      if (std::ssize(some) < wanted) {
        report.notes.push_back(
            fmt::format("{}: {} questions of type {} instead of {}: the data allows no more fair option sets", name,
                        some.size(), code_of(type), wanted));
        advance(wanted - std::ssize(some));
      }
      questions.insert(questions.end(), std::make_move_iterator(some.begin()), std::make_move_iterator(some.end()));
    }
    if (questions.empty()) return questions;
    // Stored in random order, so that a prefix of the file is a fair sample and an option set's questions lie apart.
    std::vector<Question> mixed;
    mixed.reserve(questions.size());
    const Permutation order(questions.size(), stream_key(options.seed, "questions/order/" + name));
    for (std::size_t i = 0; i < questions.size(); ++i) {
      mixed.push_back(std::move(questions[order(i)]));
      mixed.back().id = next_id++;
    }
    return mixed;
  };
  built.train = make_split("train", train_users, options.per_type_train, report.train_counts);
  built.test = make_split("test", test_users, options.per_type_test, report.test_counts);
  UQA_CHECK(!built.train.empty() && !built.test.empty(), ErrorCode::kData,
            "{} train and {} test questions could be made, at least one each is needed; the data set needs titles or "
            "attributes and more users",
            built.train.size(), built.test.size());
  built.train_users = train_users;
  built.test_users = test_users;
  report.train_users = count_users(built.train);
  report.test_users = count_users(built.test);

  report.prior_only = score(PriorAnswerer::train(built.train, {.seed = options.seed}), built.test);
  for (const auto& [code, s] : report.prior_only) {
    if (s.low > 0.25 || s.high < 0.25) {
      report.notes.push_back(fmt::format("prior-only answerer, {}: {:.4f} in [{:.4f}, {:.4f}] does not contain 0.25",
                                         code, s.accuracy, s.low, s.high));
    }
  }
  for (const std::string& note : report.notes) log::warn("questions", "{}", note);
  report.seconds = seconds_since(started);
  return built;
}

namespace {

/// Raw ids, one a line, of the users whose place in the list `keep` accepts.
std::string user_lines(const HistoryView& view, const std::vector<std::int64_t>& users, const std::function<bool(std::size_t)>& keep) {
  std::string text;
  for (std::size_t i = 0; i < users.size(); ++i) {
    if (!keep(i)) continue;
    text += view.raw_user_ids.empty() ? std::to_string(users[i]) : view.raw_user_ids[static_cast<std::size_t>(users[i])];
    text += '\n';
  }
  return text;
}

constexpr std::size_t kValidEvery = 10;  // one train-side user in so many validates pre-training

}  // namespace

QuestionBuildReport write_questions(const HistoryView& view, const QuestionBuildOptions& options,
                                    const fs::path& output, bool overwrite, const QuestionProgress& progress) {
  options.validate();
  OutputDir directory(output, {.kind = kQuestionFormat, .overwrite = overwrite});
  const BuiltQuestions built = make_questions(view, options, progress);
  const std::string train = questions_to_jsonl(built.train), test = questions_to_jsonl(built.test);
  const QuestionBuildReport& report = built.report;
  const Json manifest{
      {"format", kQuestionFormat},
      {"version", 1},
      {"language", code_of(options.language)},
      {"data_digest", view.digest},
      {"digest", question_files_digest(train, test)},
      {"options", options_json(options, choose_attributes(view.catalog, options.attributes), view.catalog)},
      {"counts", {{"train", report.train_counts}, {"test", report.test_counts}}},
      {"users", {{"train", report.train_users}, {"test", report.test_users}}},
      {"prior_only", to_json(report.prior_only)},
      {"notes", report.notes}};
  write_file_atomic(directory.path() / kTrainQuestions, train);
  write_file_atomic(directory.path() / kTestQuestions, test);
  const auto validates = [](std::size_t i) { return i % kValidEvery == kValidEvery - 1; };
  write_file_atomic(directory.path() / "users_train.txt", user_lines(view, built.train_users, [&](std::size_t i) { return !validates(i); }));
  write_file_atomic(directory.path() / "users_valid.txt", user_lines(view, built.train_users, validates));
  write_file_atomic(directory.path() / "users_test.txt", user_lines(view, built.test_users, [](std::size_t) { return true; }));
  write_file_atomic(directory.path() / kQuestionManifest, manifest.dump(1) + "\n");
  directory.commit();
  return report;
}

QuestionBuildReport build_questions(const Dataset& data, const QuestionBuildOptions& options, const fs::path& output,
                                    bool overwrite, const QuestionProgress& progress) {
  return write_questions(view_of(data), options, output, overwrite, progress);
}

}  // namespace uqa::data
