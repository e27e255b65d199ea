#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "core/random.h"
#include "data/questions/prior_answerer.h"
#include "questions_synthetic.h"

namespace uqa::data {
namespace {

// How questions are usually made: the truth about a random user, beside three other values of the vocabulary.
std::vector<Question> naive_questions(const HistoryView& view, std::int64_t first_user, std::int64_t last_user, int n) {
  PhiloxStream random(stream_key(3, fmt::format("tests/naive/{}", first_user)));
  std::vector<Question> questions;
  const auto fill = [&](QuestionType type, const std::string& gold, const auto& draw_other) {
    Question q;
    q.id = std::ssize(questions);
    q.user = first_user + static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(last_user - first_user)));
    q.type = type;
    q.end = 1;
    q.stem = code_of(type);
    q.options = {gold};
    while (q.options.size() < 4) {
      const std::string other = draw_other();
      if (std::find(q.options.begin(), q.options.end(), other) == q.options.end()) q.options.push_back(other);
    }
    const std::size_t place = random.below(4);
    std::swap(q.options[0], q.options[place]);
    q.answer = std::string(1, static_cast<char>('A' + static_cast<int>(place)));
    questions.push_back(q);
  };
  const auto& genre = view.catalog.attributes[0];
  const auto& year = view.catalog.attributes[1];
  const auto any_item = [&] { return static_cast<std::int32_t>(random.below(view.catalog.titles.size())); };
  for (int i = 0; i < n; ++i) {
    const std::int64_t user =
        first_user + static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(last_user - first_user)));
    const std::int32_t item =
        view.item(user, static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(view.length(user)))));
    fill(QuestionType::kItemPrediction, view.catalog.titles[static_cast<std::size_t>(item)],
         [&] { return view.catalog.titles[static_cast<std::size_t>(any_item())]; });
    fill(QuestionType::kAttributePrediction, year.vocabulary[static_cast<std::size_t>(year.of(item)[0])],
         [&] { return year.vocabulary[random.below(year.vocabulary.size())]; });
    const auto triple = [&](const auto& draw) { return draw() + ", " + draw() + ", " + draw(); };
    const auto item_genre = [&] {
      for (;;) {
        const auto values = genre.of(
            view.item(user, static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(view.length(user))))));
        if (!values.empty()) return genre.vocabulary[static_cast<std::size_t>(values[0])];
      }
    };
    const auto any_genre = [&] { return genre.vocabulary[random.below(genre.vocabulary.size())]; };
    fill(QuestionType::kLongTermInterest, triple(item_genre), [&] { return triple(any_genre); });
  }
  return questions;
}

TEST(PriorAnswerer, FindsTheLeakInNaiveQuestions) {
  const HistoryView view = synthetic_view();
  const auto prior = PriorAnswerer::train(naive_questions(view, 1, 160, 1000));
  const auto scores = score(prior, naive_questions(view, 160, 240, 400));
  for (const char* code : {"ip", "ap", "li", "all"}) {
    EXPECT_GT(scores.at(code).accuracy, 0.4) << code;
    EXPECT_GT(scores.at(code).low, 0.25) << code;
  }
  EXPECT_EQ(scores.at("all").n, 1200);
}

std::vector<Question> rigged(int n, std::uint64_t seed, const std::function<std::size_t(const Question&)>& gold) {
  PhiloxStream random(stream_key(seed, "tests/rigged"));
  std::vector<Question> questions;
  for (int i = 0; i < n; ++i) {
    Question q;
    q.user = i;
    q.end = 1;
    q.stem = "How many?";
    std::set<std::uint64_t> numbers;
    while (numbers.size() < 4) numbers.insert(random.below(100000));
    for (const std::uint64_t number : numbers) q.options.push_back(std::to_string(number));
    for (std::size_t k = 4; k > 1; --k) std::swap(q.options[k - 1], q.options[random.below(k)]);
    q.answer = std::string(1, static_cast<char>('A' + static_cast<int>(gold(q))));
    questions.push_back(q);
  }
  return questions;
}

TEST(PriorAnswerer, FindsALeakThroughTheLetter) {
  const auto gold = [](const Question& q) { return q.user % 3 == 0 ? std::size_t{0} : std::size_t{2}; };
  EXPECT_GT(score(PriorAnswerer::train(rigged(600, 1, gold)), rigged(300, 2, gold)).at("df").accuracy, 0.6);
}

TEST(PriorAnswerer, FindsALeakThroughTheOrderOfNumbersNotSeenBefore) {
  const auto gold = [](const Question& q) {  // the second largest
    std::vector<std::pair<int, std::size_t>> order;
    for (std::size_t i = 0; i < 4; ++i) order.emplace_back(std::stoi(q.options[i]), i);
    std::sort(order.begin(), order.end());
    return order[2].second;
  };
  EXPECT_GT(score(PriorAnswerer::train(rigged(600, 1, gold)), rigged(300, 2, gold)).at("df").accuracy, 0.9);
}

TEST(PriorAnswerer, FindsALeakThroughDistractorsMadeFromTheGold) {
  PhiloxStream random(stream_key(5, "tests/shared"));
  const auto word = [&] { return fmt::format("w{}", random.below(100000)); };
  const auto make = [&](int n) {
    std::vector<Question> questions;
    for (int i = 0; i < n; ++i) {
      Question q;
      q.user = i;
      q.end = 1;
      q.type = QuestionType::kInterestTrajectory;
      const std::string a = word(), b = word(), c = word();
      q.options = {word() + " -> " + b + " -> " + c, a + " -> " + word() + " -> " + c,
                   a + " -> " + b + " -> " + word()};
      const std::size_t place = random.below(4);
      q.options.insert(q.options.begin() + static_cast<std::ptrdiff_t>(place), a + " -> " + b + " -> " + c);
      q.answer = std::string(1, static_cast<char>('A' + static_cast<int>(place)));
      questions.push_back(q);
    }
    return questions;
  };
  EXPECT_GT(score(PriorAnswerer::train(make(600)), make(300)).at("it").accuracy, 0.9);
}

TEST(PriorAnswerer, IsAtChanceWhereThereIsNothingToLearn) {
  PhiloxStream random(stream_key(9, "tests/chance"));
  const auto gold = [&](const Question&) { return static_cast<std::size_t>(random.below(4)); };
  const auto prior = PriorAnswerer::train(rigged(600, 1, gold));
  const auto s = score(prior, rigged(1000, 2, gold)).at("all");
  EXPECT_LE(s.low, 0.25);
  EXPECT_GE(s.high, 0.25);
}

TEST(PriorAnswerer, SaysThatAFreeFormQuestionHasNoOptions) {
  Question q;
  q.answer = "C";
  EXPECT_THROW((void)PriorAnswerer::train({q}), Error);
  EXPECT_THROW((void)PriorAnswerer::train({}).answer(q), Error);
}

}  // namespace
}  // namespace uqa::data
