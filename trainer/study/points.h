// trainer/study/points.h - how far the runs of a study are, and what finished ones measured: points.csv.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/study/study_file.h"

namespace uqa::trainer::study {

enum class State { kWaiting, kStarted, kFinished };
[[nodiscard]] const char* name_of(State state);

struct StageState {
  State state = State::kWaiting;
  std::int64_t step = 0;      ///< of the last record
  double loss_nats = 0;       ///< likewise; 0: none yet
  double idle_s = 0;          ///< since its directory last changed; started stages
};
/// Looks at the stage's directory: finished when it holds result.json.
[[nodiscard]] StageState state_of(const StageCommand& stage);
[[nodiscard]] bool is_finished(const Run& run);

/// One row a finished run with a pre-training (its own or that of the run it needs), for `uqa study fit`:
///   name encoder llm adapter tokens width depth max_len fraction seed         what it is
///   n_llm n_backbone n_tables n_total                                         parameters; n_llm where LLMs are compared
///   d_interactions d_unique c_flops c_flops_no_softmax                        trained on; FLOPs of training by the stored convention
///   loss_nats metric                                                          held-out next-item loss and metric: test, else validation
///   acc_<type> acc_<type>_n acc_<type>_users_effect, and of all               text rule, where the run was evaluated; design effect of the users
/// Error(kData) for a run directory that is not what this program writes.
[[nodiscard]] std::string points_csv(const std::vector<Run>& runs);

/// A table of all runs as text; `now_finished` gets the number of finished runs.
[[nodiscard]] std::string render_status(const std::vector<Run>& runs, std::int64_t* num_finished = nullptr);

}  // namespace uqa::trainer::study
