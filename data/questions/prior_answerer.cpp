#include "data/questions/prior_answerer.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "core/error.h"
#include "core/random.h"
#include "core/statistics.h"

namespace uqa::data {

namespace {

constexpr double kStep = 0.2;  // AdaGrad's step before its own scaling

// The pieces of "A, B, C" and "A -> B -> C" (and their Chinese forms), in order; one piece for anything else.
std::vector<std::string> parts_of(const std::string& text) {
  std::vector<std::string> parts{""};
  for (std::size_t i = 0; i < text.size();) {
    std::size_t joint = 0;
    for (const std::string_view candidate :
         {std::string_view(", "), std::string_view(" -> "), std::string_view("、"), std::string_view("→")}) {
      if (std::string_view(text).substr(i).starts_with(candidate)) joint = candidate.size();
    }
    if (joint > 0) {
      parts.emplace_back();
      i += joint;
    } else {
      parts.back() += text[i++];
    }
  }
  return parts;
}

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    if (end > begin) words.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return words;
}

std::optional<double> number_in(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !std::isfinite(value)) return std::nullopt;
  return value;
}

// Number of options that are strictly larger.
std::size_t rank_of(const std::vector<double>& values, std::size_t i) {
  return static_cast<std::size_t>(std::count_if(values.begin(), values.end(), [&](double v) { return v > values[i]; }));
}

std::vector<double> softmax(std::vector<double> scores) {
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& s : scores) sum += s = std::exp(s - largest);
  for (double& s : scores) s /= sum;
  return scores;
}

}  // namespace

// `intern(text)` gives the index of a feature, or nothing to leave it out.
template <typename Intern>
PriorAnswerer::Features PriorAnswerer::features_of(const Question& question, const Model& model, Intern&& intern) {
  const std::size_t n = question.options.size();
  Features features(n);
  std::vector<double> offered(n), lengths(n), numbers(n);
  std::vector<std::vector<std::string>> parts(n);
  bool all_numbers = true;
  for (std::size_t i = 0; i < n; ++i) {
    const auto it = model.offered.find(question.options[i]);
    offered[i] = it == model.offered.end() ? 0 : std::log1p(it->second);
    lengths[i] = static_cast<double>(question.options[i].size());
    parts[i] = parts_of(question.options[i]);
    const auto number = number_in(question.options[i]);
    all_numbers = all_numbers && number;
    numbers[i] = number.value_or(0);
  }
  for (std::size_t i = 0; i < n; ++i) {
    const auto add = [&](const std::string& name, double value = 1) {
      if (const std::optional<std::uint32_t> index = intern(name))
        features[i].push_back({*index, static_cast<float>(value)});
    };
    const auto add_with_stem = [&](const std::string& name) {
      add(name);
      add(name + "|" + question.stem);
    };
    const std::string& text = question.options[i];
    add_with_stem("text:" + text);
    add_with_stem(fmt::format("letter:{}", i));
    add_with_stem(fmt::format("offered_rank:{}", rank_of(offered, i)));
    add_with_stem(fmt::format("length_rank:{}", rank_of(lengths, i)));
    add("offered", offered[i]);
    add("length", std::log1p(lengths[i]));
    if (all_numbers) {
      add_with_stem(fmt::format("number_rank:{}", rank_of(numbers, i)));
      add("number", std::log1p(std::abs(numbers[i])));
    }
    std::size_t shared = 0;
    for (std::size_t other = 0; other < n; ++other) {
      for (const std::string& part : parts[i]) {
        if (other != i && std::find(parts[other].begin(), parts[other].end(), part) != parts[other].end()) ++shared;
      }
    }
    add_with_stem(fmt::format("shared:{}", shared));
    if (parts[i].size() > 1) {
      for (std::size_t p = 0; p < parts[i].size(); ++p) {
        add_with_stem("part:" + parts[i][p]);
        add_with_stem(fmt::format("part{}:{}", p, parts[i][p]));
      }
      const std::set<std::string> distinct(parts[i].begin(), parts[i].end());
      add_with_stem(fmt::format("distinct:{}", distinct.size()));
    } else {
      for (const std::string& word : words_of(text)) add("word:" + word);
    }
  }
  return features;
}

PriorAnswerer PriorAnswerer::train(const std::vector<Question>& questions, const PriorOptions& options) {
  UQA_CHECK(options.folds >= 2 && options.epochs >= 1 && !options.l2.empty(), ErrorCode::kInternal,
            "prior-only answerer: folds = {}, epochs = {}, {} penalties; need at least 2, 1 and 1", options.folds,
            options.epochs, options.l2.size());
  struct Example {
    Features features;
    std::size_t gold = 0;
    int fold = 0;
  };
  const auto scores_of = [](const Features& features, const std::vector<double>& weights) {
    std::vector<double> scores(features.size());
    for (std::size_t i = 0; i < features.size(); ++i) {
      for (const Feature& f : features[i]) scores[i] += weights[f.index] * static_cast<double>(f.value);
    }
    return scores;
  };

  PriorAnswerer answerer;
  for (const QuestionType type : kQuestionTypes) {
    std::vector<const Question*> own;
    for (const Question& q : questions) {
      if (q.type == type) own.push_back(&q);
    }
    if (own.empty()) continue;
    Model model;
    for (const Question* q : own) {
      for (const std::string& text : q->options) model.offered[text] += 1;
    }
    std::vector<Example> examples;
    examples.reserve(own.size());
    for (const Question* q : own) {
      const auto intern = [&](const std::string& name) -> std::optional<std::uint32_t> {
        return model.feature_index.try_emplace(name, static_cast<std::uint32_t>(model.feature_index.size()))
            .first->second;
      };
      // Folds are of users: the answerer will be scored on users that it has not seen.
      const std::uint64_t fold_key =
          mix_key(stream_key(options.seed, "prior/folds"), static_cast<std::uint64_t>(q->user));
      examples.push_back({features_of(*q, model, intern), q->gold(),
                          static_cast<int>(fold_key % static_cast<std::uint64_t>(options.folds))});
    }
    const std::size_t num_features = model.feature_index.size();

    const auto fit = [&](double l2, int left_out) {
      std::vector<double> weights(num_features), squares(num_features, 1e-8);
      for (int epoch = 0; epoch < options.epochs; ++epoch) {
        const Permutation order(examples.size(),
                                mix_key(stream_key(options.seed, "prior/order"), static_cast<std::uint64_t>(epoch)));
        for (std::size_t step = 0; step < examples.size(); ++step) {
          const Example& example = examples[order(step)];
          if (example.fold == left_out) continue;
          const auto p = softmax(scores_of(example.features, weights));
          for (std::size_t i = 0; i < p.size(); ++i) {
            const double error = p[i] - (i == example.gold ? 1 : 0);
            for (const Feature& f : example.features[i]) {
              const double gradient = error * static_cast<double>(f.value) + l2 * weights[f.index];
              squares[f.index] += gradient * gradient;
              weights[f.index] -= kStep * gradient / std::sqrt(squares[f.index]);
            }
          }
        }
      }
      return weights;
    };

    double best_l2 = options.l2.front(), best_nats = std::numeric_limits<double>::infinity();
    for (const double l2 : options.l2) {
      if (options.l2.size() == 1) break;
      double nats = 0;
      for (int fold = 0; fold < options.folds; ++fold) {
        const auto weights = fit(l2, fold);
        for (const Example& example : examples) {
          if (example.fold == fold)
            nats -= std::log(std::max(1e-12, softmax(scores_of(example.features, weights))[example.gold]));
        }
      }
      if (nats < best_nats) {
        best_nats = nats;
        best_l2 = l2;
      }
    }
    model.weights = fit(best_l2, /*left_out=*/-1);
    answerer.models_.emplace(type, std::move(model));
  }
  return answerer;
}

std::vector<double> PriorAnswerer::probabilities(const Question& question) const {
  UQA_CHECK(!question.options.empty(), ErrorCode::kData,
            "question {} is free-form (no options), a multiple-choice one is needed", question.id);
  std::vector<double> scores(question.options.size());
  const auto it = models_.find(question.type);
  if (it == models_.end()) return softmax(scores);
  const Model& model = it->second;
  const auto intern = [&](const std::string& name) -> std::optional<std::uint32_t> {
    const auto found = model.feature_index.find(name);
    if (found == model.feature_index.end()) return std::nullopt;
    return found->second;
  };
  const Features features = features_of(question, model, intern);
  for (std::size_t i = 0; i < features.size(); ++i) {
    for (const Feature& f : features[i]) scores[i] += model.weights[f.index] * static_cast<double>(f.value);
  }
  return softmax(std::move(scores));
}

std::size_t PriorAnswerer::answer(const Question& question) const {
  const auto p = probabilities(question);
  return static_cast<std::size_t>(std::max_element(p.begin(), p.end()) - p.begin());
}

std::map<std::string, PriorScore> score(const PriorAnswerer& answerer, const std::vector<Question>& questions) {
  std::map<std::string, PriorScore> scores;
  for (const Question& q : questions) {
    const bool correct = answerer.answer(q) == q.gold();
    for (PriorScore* s : {&scores[code_of(q.type)], &scores["all"]}) {
      ++s->n;
      if (correct) ++s->correct;
    }
  }
  for (auto& [code, s] : scores) {
    const Interval interval = wilson_interval(s.correct, s.n);
    s.accuracy = static_cast<double>(s.correct) / static_cast<double>(s.n);
    s.low = interval.low;
    s.high = interval.high;
  }
  return scores;
}

Json to_json(const std::map<std::string, PriorScore>& scores) {
  Json json = Json::object();
  for (const auto& [code, s] : scores) {
    json[code] = Json{{"n", s.n}, {"correct", s.correct}, {"accuracy", s.accuracy}, {"low", s.low}, {"high", s.high}};
  }
  return json;
}

}  // namespace uqa::data
