#include "trainer/word_start.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <utility>

#include "core/error.h"
#include "core/random.h"

// S questions, H width of the states, L width of the LLM, V tokens, W tokens that occur in options.

namespace uqa::trainer {
namespace {

constexpr std::size_t kBatch = 32, kPasses = 3;
constexpr double kRate = 8;
constexpr double kShrink = 100;  // occurrences at which a token keeps half of what it learned
constexpr std::size_t kOptions = 4;

/// Tokens that occur in options, numbered in ascending order, and how often.
struct UsedTokens {
  std::map<std::int64_t, std::int64_t> row_of;
  std::vector<double> count_W;

  explicit UsedTokens(const WordQuestions& questions) {
    std::map<std::int64_t, double> counts;
    for (const auto* options : questions.options) {
      for (const auto& option : *options) {
        for (const auto token : option) counts[token] += 1;
      }
    }
    for (const auto& [token, count] : counts) {
      row_of.emplace(token, static_cast<std::int64_t>(count_W.size()));
      count_W.push_back(count);
    }
  }
};

/// The answerer: token w speaks for a user with state x by <a_w, x>.
class Answerer {
 public:
  Answerer(const WordQuestions& questions, const UsedTokens& tokens)
      : questions_(questions),
        tokens_(tokens),
        states_SH_(questions.states_SH.to(at::kDouble).contiguous()),
        a_WH_(at::zeros({static_cast<std::int64_t>(tokens.row_of.size()), states_SH_.size(1)}, at::kDouble)) {}

  [[nodiscard]] std::array<double, kOptions> scores(std::size_t q) const {
    std::array<double, kOptions> scores{};
    for_tokens(q, [&](std::size_t option, double share, const double* a, const double* x) {
      for (std::int64_t h = 0; h < width(); ++h) scores[option] += share * a[h] * x[h];
    });
    return scores;
  }
  /// a_w -= by[option] * share of w in the option * x.
  void subtract(std::size_t q, const std::array<double, kOptions>& by) {
    for_tokens(q, [&](std::size_t option, double share, double* a, const double* x) {
      for (std::int64_t h = 0; h < width(); ++h) a[h] -= by[option] * share * x[h];
    });
  }
  [[nodiscard]] const Tensor& weights() const { return a_WH_; }

 private:
  [[nodiscard]] std::int64_t width() const { return states_SH_.size(1); }
  template <typename F>
  void for_tokens(std::size_t q, F&& f) const {
    const auto& options = *questions_.options[q];
    const auto* x = states_SH_.const_data_ptr<double>() + static_cast<std::int64_t>(q) * width();
    auto* a = a_WH_.mutable_data_ptr<double>();
    for (std::size_t o = 0; o < kOptions; ++o) {
      for (const auto token : options[o]) f(o, 1.0 / static_cast<double>(options[o].size()), a + tokens_.row_of.at(token) * width(), x);
    }
  }
  const WordQuestions& questions_;
  const UsedTokens& tokens_;
  Tensor states_SH_, a_WH_;
};

std::array<double, kOptions> softmax(const std::array<double, kOptions>& scores) {
  const double largest = *std::max_element(scores.begin(), scores.end());
  std::array<double, kOptions> p{};
  double sum = 0;
  for (std::size_t o = 0; o < kOptions; ++o) sum += p[o] = std::exp(scores[o] - largest);
  for (auto& value : p) value /= sum;
  return p;
}

}  // namespace

WordStart fit_word_start(const WordQuestions& questions, const Tensor& tokens_VL, std::uint64_t seed) {
  const std::size_t size = questions.options.size();
  UQA_CHECK(size > 0 && questions.states_SH.size(0) == static_cast<std::int64_t>(size) && questions.gold.size() == size, ErrorCode::kInternal,
            "fit_word_start: {} options, {} answers and as many states are needed", size, questions.gold.size());
  const at::NoGradGuard no_grad;
  const UsedTokens tokens(questions);
  Answerer answerer(questions, tokens);
  const auto key = stream_key(seed, "align/word_start");
  const double num_steps = static_cast<double>(kPasses) * std::ceil(static_cast<double>(size) / static_cast<double>(kBatch));
  double step = 0;
  std::size_t correct = 0;
  for (std::size_t pass = 0; pass < kPasses; ++pass) {
    std::vector<std::pair<std::uint64_t, std::size_t>> order;
    for (std::size_t q = 0; q < size; ++q) order.emplace_back(mix_key(key, pass * size + q), q);
    std::sort(order.begin(), order.end());
    for (std::size_t begin = 0; begin < size; begin += kBatch) {
      const std::size_t end = std::min(size, begin + kBatch);
      const double rate = kRate * (1 - step / num_steps) / static_cast<double>(end - begin);
      step += 1;
      std::vector<std::array<double, kOptions>> moves;
      for (std::size_t i = begin; i < end; ++i) {
        const std::size_t q = order[i].second;
        const auto scores = answerer.scores(q);
        if (pass + 1 == kPasses && std::max_element(scores.begin(), scores.end()) - scores.begin() == questions.gold[q]) ++correct;
        auto& move = moves.emplace_back(softmax(scores));
        move[static_cast<std::size_t>(questions.gold[q])] -= 1;
        for (auto& value : move) value *= rate;
      }
      for (std::size_t i = begin; i < end; ++i) answerer.subtract(order[i].second, moves[i - begin]);
    }
  }
  std::vector<std::int64_t> used;
  for (const auto& [token, _] : tokens.row_of) used.push_back(token);
  const auto count_W = at::tensor(tokens.count_W, at::kDouble);
  const auto shrunk_WH = answerer.weights() * (count_W / (count_W + kShrink)).unsqueeze(1);
  const auto centred_WL = (tokens_VL.index_select(0, at::tensor(used, at::kLong)) - tokens_VL.mean(0)).to(at::kDouble);
  return {.weight_LH = at::mm(centred_WL.t(), shrunk_WH), .accuracy = static_cast<double>(correct) / static_cast<double>(size)};
}

}  // namespace uqa::trainer
