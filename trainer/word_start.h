// trainer/word_start.h - where an adapter starts: soft tokens that are sums of token embeddings of the words that are right about their
// users. Learned from the training questions without running the LLM; private to trainer/.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/ATen.h>

namespace uqa::trainer {

using at::Tensor;

/// The questions as a bilinear answerer sees them.
struct WordQuestions {
  Tensor states_SH;                                             ///< states of the users, centred, of about unit variance
  std::vector<const std::vector<std::vector<std::int64_t>>*> options;  ///< token ids of each question's options; kept alive by the caller
  std::vector<std::int64_t> gold;                               ///< index of the right one
};

struct WordStart {
  Tensor weight_LH;     ///< float64; soft token of a user with state x: weight x
  double accuracy = 0;  ///< share of the questions that the answerer got right in its last pass, each before it learned from it
};

/// Trains an answerer in which token v speaks for a user with state x by <a_v, x> and an option scores the mean over its tokens
/// (cross-entropy of the gold option, stochastic gradient descent in float64, order from `seed` alone), and returns sum_v e_v a_v^T over the
/// tokens that occur, e_v the rows of `tokens_VL` less their mean and a_v shrunk where v is rare: by n / (n + 100), n its occurrences. So the
/// soft tokens are mixtures of words that say something about many users. A representation-learning stage before the generative one, as BLIP-2 has
/// (Li et al. 2023).
[[nodiscard]] WordStart fit_word_start(const WordQuestions& questions, const Tensor& tokens_VL, std::uint64_t seed);

}  // namespace uqa::trainer
