// trainer/user_states.h - what adapters look at, for many questions, computed once: a frozen encoder gives a history the same states at
// every step (docs/design/0008).
//
//   const auto states = compute_user_states(encoder, data, spans, adapter->view(), comm);
//   const auto [states_TH, layout] = states.select(questions);      // input of adapter->forward()
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "core/file.h"
#include "data/batch.h"
#include "models/adapters/adapter.h"
#include "models/user_model.h"

namespace uqa::trainer {

using at::Tensor;

/// States of the distinct histories behind Q questions.
struct UserStates {
  models::StateView view = models::StateView::kMean;
  Tensor rows_RH;                         ///< float32 for kMean and kLast (one row a history), bfloat16 for kAll; in host memory, which is the larger
  std::vector<std::int64_t> begins, ends; ///< rows of each distinct history
  std::vector<std::int64_t> history_of;   ///< [Q] which of them a question shows

  /// float32 rows of some questions' histories, in their order, on `device`, and their layout.
  [[nodiscard]] std::pair<Tensor, models::PackedLayout> select(std::span<const std::int64_t> questions, const at::Device& device = at::kCPU) const;
  [[nodiscard]] std::int64_t bytes() const { return static_cast<std::int64_t>(rows_RH.nbytes()); }
};

/// Runs each distinct (user, begin, end) of `spans` once where `model` lives, in eval mode without gradient. Batches are fixed by the spans alone, so equal
/// spans in an equal order give equal bits on any number of ranks, which share the work: each group of `tp`, consecutive ranks of `comm` over which
/// the model is split, takes some. Collective over `comm`; every rank gets all.
/// Error(kData) for a span that the data set does not have.
[[nodiscard]] UserStates compute_user_states(models::UserModel model, const data::Dataset& data, const std::vector<data::Span>& spans, models::StateView view,
                                             const comm::Communicator& comm, const models::TensorParallel& tp = {});

/// Where states are kept between runs.
struct StateCacheConfig {
  std::string users = "memory";              ///< "memory"; "off": the encoder runs in every step; else an HDF5 file, made on first use and read after
  std::int64_t max_bytes = 8LL << 30;        ///< refuse to keep more; > 0
};

/// Reads `cache.users` if that file exists, else computes and, where it is a file, rank 0 writes it. The file names the encoder, the data and
/// the spans it was made for: Error(kConfig) if they are others, or if the states would take more than max_bytes. Collective over `comm`.
[[nodiscard]] UserStates cached_user_states(const StateCacheConfig& cache, const std::string& encoder_digest, models::UserModel model, const data::Dataset& data,
                                            const std::vector<data::Span>& spans, models::StateView view, const comm::Communicator& comm,
                                            const models::TensorParallel& tp = {});

}  // namespace uqa::trainer
