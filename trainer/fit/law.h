// trainer/fit/law.h - power laws with an irreducible loss, fitted by Huber's loss on log loss.
//
//   log L = log(E + A_1 X_1^-alpha_1 + ... + A_K X_K^-alpha_K),   K = 1: L(N) or L(D);   K = 2: L(N, D)
//
//   const auto fit = fit_law({.log_x = {log_n, log_d}, .log_loss = log_loss}, {});
//   const double loss = std::exp(log_prediction(fit, {std::log(1e9), std::log(2e10)}));
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace uqa::fit {

inline constexpr std::size_t kMaxTerms = 2;
inline constexpr std::size_t kMaxParameters = 1 + 2 * kMaxTerms;
/// theta = (log E, log A_1, alpha_1, log A_2, alpha_2), with A_k taken at the centre of the runs' log X_k. Unused entries are 0.
using Theta = std::array<double, kMaxParameters>;
using Matrix = std::array<Theta, kMaxParameters>;

/// One run a column: natural logarithms of its sizes and of its loss. All vectors have the same length.
struct LawData {
  std::vector<std::vector<double>> log_x;  ///< [terms][runs], 1 or 2 terms
  std::vector<double> log_loss;            ///< [runs]
  [[nodiscard]] std::size_t num_runs() const { return log_loss.size(); }
  [[nodiscard]] std::size_t num_terms() const { return log_x.size(); }
  [[nodiscard]] std::size_t num_parameters() const { return 1 + 2 * log_x.size(); }
};

struct LawOptions {
  /// Residuals of log loss beyond it count linearly; 0: 1.345 times the robust spread of the residuals, where Huber's estimate keeps 95 % of
  /// the efficiency of least squares under normal noise.
  double huber_delta = 0;
};

struct LawFit {
  std::size_t num_terms = 0;
  std::array<double, kMaxTerms> center{};  ///< mean of log X_k
  Theta theta{};
  Matrix covariance{};            ///< of theta, Huber's small-sample form; only with degrees_of_freedom > 0
  std::vector<double> fitted;     ///< log loss of each run
  std::vector<double> residual;   ///< log loss observed - fitted
  std::vector<double> leverage;   ///< of each run, in [0, 1]
  double delta = 0;               ///< Huber's, in use
  double spread = 0;              ///< standard deviation of the noise of log loss that the residuals imply; 0 without degrees of freedom
  double objective = 0;           ///< mean Huber loss
  std::int64_t degrees_of_freedom = 0;  ///< runs less parameters
  std::int64_t num_starts = 0;          ///< starting points that were refined

  [[nodiscard]] std::size_t num_parameters() const { return 1 + 2 * num_terms; }
  [[nodiscard]] double irreducible() const;               ///< E
  [[nodiscard]] double exponent(std::size_t term) const { return theta[2 + 2 * term]; }
  [[nodiscard]] double log_coefficient(std::size_t term) const;  ///< log A_k of X_k itself (not centred)
};

/// Fits from many starts (a grid over the exponents, E and A_k by non-negative least squares), the best of them refined by L-BFGS.
/// Error(kConfig) with fewer runs than parameters or fewer than three different sizes of a term; Error(kNumeric) when a value is not
/// finite or no start converges.
[[nodiscard]] LawFit fit_law(const LawData& data, const LawOptions& options);

/// Same law and delta on other losses of the same runs, from `from`'s optimum. `huber_delta` stays `from`'s.
[[nodiscard]] LawFit refit_law(const LawData& data, const LawFit& from);

/// log L of a law with these parameters at log sizes `log_x` (one per term).
[[nodiscard]] double log_prediction(const LawFit& shape, const Theta& theta, std::span<const double> log_x);
[[nodiscard]] inline double log_prediction(const LawFit& fit, std::span<const double> log_x) { return log_prediction(fit, fit.theta, log_x); }

}  // namespace uqa::fit
