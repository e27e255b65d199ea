// models/layers/gru_step.h - one time step of a gated recurrent unit for several sequences, and for a few columns of its weights at a time.
// packed_gru.h goes through time with it.
#pragma once

#include <cstdint>

namespace uqa::models {

// F width of the state, T packed rows, S = 4 F values saved for backward. A panel is a block of columns of the recurrent weights that lies together.

inline constexpr std::int64_t kGruFeatures = 16;                     ///< state features of a forward panel
inline constexpr std::int64_t kGruForwardColumns = 3 * kGruFeatures; ///< with the gates r, z, n of each
inline constexpr std::int64_t kGruBackwardColumns = 32;              ///< state features of a backward panel

/// New states of the users that are alive at a step, for the features of one panel.
template <typename T>
struct GruForwardStep {
  std::int64_t width = 0;                     ///< F
  std::int64_t stride = 0;                    ///< from user to user in `before` and `after`
  const T* x_TG = nullptr;                    ///< projected inputs: r, z, n
  T* saved_TS = nullptr;                      ///< written: r, z, n and W_n h
  T* out_TF = nullptr;                        ///< written: the states
  const std::int64_t* first_rows = nullptr;   ///< [num_users]
  std::int64_t num_users = 0;
  std::int64_t step = 0;                      ///< a user's row is its first row + step; nothing is before step 0
  const T* before = nullptr;                  ///< all features of the users' states at step - 1
  T* after = nullptr;                         ///< written: the panel's features at this step
  const T* weights = nullptr;                 ///< the panel: [F, 3, kGruFeatures]
  std::int64_t feature = 0;                   ///< first one of the panel
};

/// From the gradients of the gates at step + 1 those at `step`, for the features of one panel.
template <typename T>
struct GruBackwardStep {
  std::int64_t width = 0;                     ///< F
  std::int64_t gates_stride = 0;              ///< from user to user in `gates_behind` and `gates`
  std::int64_t direct_stride = 0;             ///< and in `direct`
  const T* saved_TS = nullptr;
  const T* out_TF = nullptr;
  const T* dout_TF = nullptr;
  const T* zeros_F = nullptr;                 ///< the state before step 0
  T* dx_TG = nullptr;                         ///< written: gradient of the projected inputs
  T* dcandidate_TF = nullptr;                 ///< written: gradient of W_n h
  const std::int64_t* first_rows = nullptr;   ///< [num_users]
  std::int64_t num_users = 0;                 ///< alive at `step`
  std::int64_t num_carried = 0;               ///< the first of them, alive at step + 1 too
  std::int64_t step = 0;
  const T* gates_behind = nullptr;            ///< gradients of W h at step + 1: r, z, n
  T* gates = nullptr;                         ///< written: the same at `step`
  T* direct = nullptr;                        ///< z x gradient of the state: of step + 1 (0 if not carried), overwritten with that of `step`
  const T* weights = nullptr;                 ///< the panel: [3F, kGruBackwardColumns]
  std::int64_t feature = 0;                   ///< first one of the panel
};

/// The functions for this machine's instruction set. A user's values do not depend on the users beside it.
template <typename T>
struct GruStepFunctions {
  void (*forward)(const GruForwardStep<T>&);
  void (*backward)(const GruBackwardStep<T>&);
};
template <typename T>
[[nodiscard]] GruStepFunctions<T> gru_step_functions();
extern template GruStepFunctions<float> gru_step_functions();
extern template GruStepFunctions<double> gru_step_functions();

}  // namespace uqa::models
