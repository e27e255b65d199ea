#include "trainer/fit/law.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <set>

#include <lbfgs.h>

#include "core/error.h"

namespace uqa::fit {
namespace {

constexpr double kPublishedDelta = 1e-3;  // of the Chinchilla fits; the first pass of an automatic delta

/// Lower Cholesky factor of the leading p x p block; nullopt when it is not positive definite.
std::optional<Matrix> cholesky(const Matrix& a, std::size_t p) {
  Matrix l{};
  for (std::size_t i = 0; i < p; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      double sum = a[i][j];
      for (std::size_t k = 0; k < j; ++k) sum -= l[i][k] * l[j][k];
      if (i == j) {
        if (!(sum > 1e-14 * std::abs(a[i][i])) || !(a[i][i] > 0)) return std::nullopt;
        l[i][i] = std::sqrt(sum);
      } else {
        l[i][j] = sum / l[j][j];
      }
    }
  }
  return l;
}

Theta solve_lower(const Matrix& l, Theta b, std::size_t p) {
  for (std::size_t i = 0; i < p; ++i) {
    for (std::size_t k = 0; k < i; ++k) b[i] -= l[i][k] * b[k];
    b[i] /= l[i][i];
  }
  return b;
}

Theta solve_upper(const Matrix& l, Theta b, std::size_t p) {  // with the transpose of l
  for (std::size_t i = p; i-- > 0;) {
    for (std::size_t k = i + 1; k < p; ++k) b[i] -= l[k][i] * b[k];
    b[i] /= l[i][i];
  }
  return b;
}

Matrix inverse(const Matrix& l, std::size_t p) {
  Matrix inv{};
  for (std::size_t j = 0; j < p; ++j) {
    Theta unit{};
    unit[j] = 1;
    const auto column = solve_upper(l, solve_lower(l, unit, p), p);
    for (std::size_t i = 0; i < p; ++i) inv[i][j] = column[i];
  }
  return inv;
}

/// log(E + sum_k A_k X_k^-alpha_k) and its gradient by theta. x: centred log sizes.
double log_law(const Theta& theta, const double* x, std::size_t terms, Theta& gradient) {
  double exponents[1 + kMaxTerms], weights[1 + kMaxTerms];
  exponents[0] = theta[0];
  double top = exponents[0];
  for (std::size_t k = 0; k < terms; ++k) {
    exponents[1 + k] = theta[1 + 2 * k] - theta[2 + 2 * k] * x[k];
    top = std::max(top, exponents[1 + k]);
  }
  double sum = 0;
  for (std::size_t k = 0; k <= terms; ++k) sum += weights[k] = std::exp(exponents[k] - top);
  gradient[0] = weights[0] / sum;
  for (std::size_t k = 0; k < terms; ++k) {
    gradient[1 + 2 * k] = weights[1 + k] / sum;
    gradient[2 + 2 * k] = -x[k] * weights[1 + k] / sum;
  }
  return top + std::log(sum);
}

double huber(double r, double delta) {
  const double size = std::abs(r);
  return size <= delta ? 0.5 * r * r : delta * (size - 0.5 * delta);
}
double huber_psi(double r, double delta) { return std::clamp(r, -delta, delta); }

/// The minimization of one data set: centred sizes laid out run by run.
class Problem {
 public:
  Problem(const LawData& data, const std::array<double, kMaxTerms>& center)
      : terms_(data.num_terms()), runs_(data.num_runs()), p_(data.num_parameters()), y_(data.log_loss), x_(terms_ * runs_) {
    for (std::size_t k = 0; k < terms_; ++k) {
      for (std::size_t i = 0; i < runs_; ++i) x_[i * terms_ + k] = data.log_x[k][i] - center[k];
    }
  }

  [[nodiscard]] std::size_t runs() const { return runs_; }
  [[nodiscard]] std::size_t terms() const { return terms_; }
  [[nodiscard]] std::size_t parameters() const { return p_; }
  [[nodiscard]] const double* x(std::size_t i) const { return &x_[i * terms_]; }
  [[nodiscard]] double y(std::size_t i) const { return y_[i]; }

  /// Sum of Huber losses; gradient by theta.
  double value(const Theta& theta, double delta, Theta& gradient) const {
    gradient = {};
    double sum = 0;
    Theta row;
    for (std::size_t i = 0; i < runs_; ++i) {
      const double r = log_law(theta, x(i), terms_, row) - y_[i];
      sum += huber(r, delta);
      const double psi = huber_psi(r, delta);
      for (std::size_t j = 0; j < p_; ++j) gradient[j] += psi * row[j];
    }
    return sum;
  }

  /// Gauss-Newton matrix J^T W J, with W = psi(r) / r (W = 1 for delta = infinity).
  [[nodiscard]] Matrix curvature(const Theta& theta, double delta) const {
    Matrix h{};
    Theta row;
    for (std::size_t i = 0; i < runs_; ++i) {
      const double r = std::abs(log_law(theta, x(i), terms_, row) - y_[i]);
      const double w = r <= delta ? 1 : delta / r;
      for (std::size_t a = 0; a < p_; ++a) {
        for (std::size_t b = 0; b <= a; ++b) h[a][b] += w * row[a] * row[b];
      }
    }
    for (std::size_t a = 0; a < p_; ++a) {
      for (std::size_t b = a + 1; b < p_; ++b) h[a][b] = h[b][a];
    }
    return h;
  }

 private:
  std::size_t terms_, runs_, p_;
  std::vector<double> y_, x_;
};

/// L-BFGS in coordinates z with theta = from + scale * L^-T z, in which the Gauss-Newton matrix is the identity: the raw parameters are
/// correlated beyond 0.99.
struct Descent {
  const Problem* problem;
  double delta, scale;
  Theta from;
  Matrix factor;

  [[nodiscard]] Theta at(const lbfgsfloatval_t* z) const {
    Theta step{};
    for (std::size_t j = 0; j < problem->parameters(); ++j) step[j] = z[j];
    step = solve_upper(factor, step, problem->parameters());
    Theta theta = from;
    for (std::size_t j = 0; j < problem->parameters(); ++j) theta[j] += scale * step[j];
    return theta;
  }

  static lbfgsfloatval_t evaluate(void* self, const lbfgsfloatval_t* z, lbfgsfloatval_t* g, int n, lbfgsfloatval_t) {
    const auto& descent = *static_cast<const Descent*>(self);
    Theta gradient;
    const double value = descent.problem->value(descent.at(z), descent.delta, gradient);
    const auto gradient_z = solve_lower(descent.factor, gradient, descent.problem->parameters());
    for (int j = 0; j < n; ++j) g[j] = gradient_z[static_cast<std::size_t>(j)] / descent.scale;
    return value / (descent.scale * descent.scale);
  }
};

struct Minimum {
  Theta theta{};
  double value = std::numeric_limits<double>::infinity();
};

Minimum minimize(const Problem& problem, const Theta& start, double delta, int rounds) {
  Theta gradient;
  Minimum best{.theta = start, .value = problem.value(start, delta, gradient)};
  for (int round = 0; round < rounds; ++round) {
    auto h = problem.curvature(best.theta, delta);
    for (std::size_t j = 0; j < problem.parameters(); ++j) h[j][j] = h[j][j] * (1 + 1e-9) + 1e-12;
    const auto factor = cholesky(h, problem.parameters());
    if (!factor) break;
    const double scale = std::sqrt(std::max(best.value / static_cast<double>(problem.runs()), 1e-20));
    Descent descent{.problem = &problem, .delta = delta, .scale = scale, .from = best.theta, .factor = *factor};
    lbfgs_parameter_t parameters;
    lbfgs_parameter_init(&parameters);
    parameters.m = 8;
    parameters.epsilon = 1e-6;
    parameters.max_iterations = 300;
    parameters.max_linesearch = 40;
    lbfgsfloatval_t z[kMaxParameters] = {};
    lbfgsfloatval_t value = 0;
    // A line search that ends on rounding (a negative status) still leaves the best point so far in z.
    lbfgs(static_cast<int>(problem.parameters()), z, &value, Descent::evaluate, nullptr, &descent, &parameters);
    const auto theta = descent.at(z);
    const double reached = problem.value(theta, delta, gradient);
    if (!(reached < best.value)) break;
    const bool done = best.value - reached < 1e-9 * best.value;
    best = {.theta = theta, .value = reached};
    if (done) break;
  }
  return best;
}

/// For fixed exponents the law is linear in (E, A_k): relative least squares with every coefficient >= 0, by trying each active set.
Minimum linear_start(const Problem& problem, const std::array<double, kMaxTerms>& exponents) {
  const std::size_t size = 1 + problem.terms();
  Matrix normal{};
  Theta right{};
  for (std::size_t i = 0; i < problem.runs(); ++i) {
    const double inverse_loss = std::exp(-problem.y(i));
    Theta row{inverse_loss};
    for (std::size_t k = 0; k < problem.terms(); ++k) row[1 + k] = inverse_loss * std::exp(-exponents[k] * problem.x(i)[k]);
    for (std::size_t a = 0; a < size; ++a) {
      right[a] += row[a];
      for (std::size_t b = 0; b < size; ++b) normal[a][b] += row[a] * row[b];
    }
  }
  Minimum best;
  for (unsigned active = 1; active < (1u << size); ++active) {
    std::vector<std::size_t> columns;
    for (std::size_t a = 0; a < size; ++a) {
      if ((active >> a) & 1u) columns.push_back(a);
    }
    Matrix block{};
    Theta rhs{};
    for (std::size_t a = 0; a < columns.size(); ++a) {
      rhs[a] = right[columns[a]];
      for (std::size_t b = 0; b < columns.size(); ++b) block[a][b] = normal[columns[a]][columns[b]];
    }
    const auto factor = cholesky(block, columns.size());
    if (!factor) continue;
    const auto solution = solve_upper(*factor, solve_lower(*factor, rhs, columns.size()), columns.size());
    double value = static_cast<double>(problem.runs());
    bool positive = true;
    for (std::size_t a = 0; a < columns.size(); ++a) {
      value -= solution[a] * rhs[a];
      positive = positive && solution[a] > 0;
    }
    if (!positive || value >= best.value) continue;
    best.value = value;
    double largest = 0;
    for (std::size_t a = 0; a < columns.size(); ++a) largest = std::max(largest, solution[a]);
    Theta coefficients{};
    for (auto& c : coefficients) c = 1e-3 * largest;  // an inactive one starts small, not at log 0
    for (std::size_t a = 0; a < columns.size(); ++a) coefficients[columns[a]] = solution[a];
    best.theta[0] = std::log(coefficients[0]);
    for (std::size_t k = 0; k < problem.terms(); ++k) {
      best.theta[1 + 2 * k] = std::log(coefficients[1 + k]);
      best.theta[2 + 2 * k] = exponents[k];
    }
  }
  return best;
}

std::vector<Minimum> starts(const Problem& problem) {
  constexpr std::array kExponents{0.05, 0.1, 0.18, 0.3, 0.45, 0.7, 1.0, 1.5};
  std::vector<Minimum> all;
  for (const double first : kExponents) {
    if (problem.terms() == 1) {
      all.push_back(linear_start(problem, {first, 0}));
      continue;
    }
    for (const double second : kExponents) all.push_back(linear_start(problem, {first, second}));
  }
  std::erase_if(all, [](const Minimum& m) { return !std::isfinite(m.value); });
  std::sort(all.begin(), all.end(), [](const Minimum& a, const Minimum& b) { return a.value < b.value; });
  if (all.size() > 16) all.resize(16);
  return all;
}

/// Median of the absolute residuals, adjusted for leverage, that a fit of p parameters has not made zero.
double robust_spread(const LawFit& fit) {
  std::vector<double> sizes;
  for (std::size_t i = 0; i < fit.residual.size(); ++i) sizes.push_back(std::abs(fit.residual[i]) / std::sqrt(std::max(1 - fit.leverage[i], 1e-4)));
  std::sort(sizes.begin(), sizes.end());
  const std::size_t first = fit.num_parameters() - 1, count = sizes.size() - first;
  const double upper = sizes[first + count / 2], lower = sizes[first + (count - 1) / 2];
  return 0.5 * (upper + lower) / 0.6745;
}

/// Fills everything that follows from theta and delta.
void describe(LawFit& fit, const Problem& problem) {
  const std::size_t n = problem.runs(), p = problem.parameters();
  fit.fitted.resize(n);
  fit.residual.resize(n);
  fit.leverage.assign(n, 0);
  fit.degrees_of_freedom = static_cast<std::int64_t>(n) - static_cast<std::int64_t>(p);
  std::vector<Theta> rows(n);
  double sum_psi2 = 0, inside = 0, objective = 0;
  for (std::size_t i = 0; i < n; ++i) {
    fit.fitted[i] = log_law(fit.theta, problem.x(i), problem.terms(), rows[i]);
    fit.residual[i] = problem.y(i) - fit.fitted[i];
    const double psi = huber_psi(fit.residual[i], fit.delta);
    sum_psi2 += psi * psi;
    inside += std::abs(fit.residual[i]) <= fit.delta ? 1 : 0;
    objective += huber(fit.residual[i], fit.delta);
  }
  fit.objective = objective / static_cast<double>(n);
  fit.covariance = {};
  fit.spread = 0;
  const auto factor = cholesky(problem.curvature(fit.theta, std::numeric_limits<double>::infinity()), p);
  if (!factor) return;
  const auto inverse_gram = inverse(*factor, p);
  for (std::size_t i = 0; i < n; ++i) {
    const auto half = solve_lower(*factor, rows[i], p);
    for (std::size_t j = 0; j < p; ++j) fit.leverage[i] += half[j] * half[j];
  }
  if (fit.degrees_of_freedom <= 0) return;
  // P. J. Huber, "Robust regression" (1973): K^2 sum psi^2 / (n - p) / mean(psi')^2, with K = 1 + p / n * (1 - m) / m and m = mean(psi').
  const double count = static_cast<double>(n), m = std::max(inside, 1.0) / count;
  const double k = 1 + static_cast<double>(p) / count * (1 - m) / m;
  fit.spread = k * std::sqrt(sum_psi2 / static_cast<double>(fit.degrees_of_freedom)) / m;
  for (std::size_t a = 0; a < p; ++a) {
    for (std::size_t b = 0; b < p; ++b) fit.covariance[a][b] = fit.spread * fit.spread * inverse_gram[a][b];
  }
}

void check(const LawData& data) {
  UQA_CHECK(data.num_terms() >= 1 && data.num_terms() <= kMaxTerms, ErrorCode::kInternal, "a law of {} terms", data.num_terms());
  UQA_CHECK(data.num_runs() >= data.num_parameters(), ErrorCode::kConfig,
            "runs to fit = {}, a law of {} parameters needs at least as many; add runs or fit a law of one size", data.num_runs(), data.num_parameters());
  for (const auto& log_x : data.log_x) {
    UQA_CHECK(log_x.size() == data.num_runs(), ErrorCode::kInternal, "{} sizes for {} losses", log_x.size(), data.num_runs());
    for (const double x : log_x) UQA_CHECK(std::isfinite(x), ErrorCode::kNumeric, "a log size = {} is not finite", x);
    UQA_CHECK(std::set<double>(log_x.begin(), log_x.end()).size() >= 3, ErrorCode::kConfig,
              "different sizes = {}, a power law with an irreducible loss needs at least 3; add runs of other sizes",
              std::set<double>(log_x.begin(), log_x.end()).size());
  }
  for (const double y : data.log_loss) UQA_CHECK(std::isfinite(y), ErrorCode::kNumeric, "a log loss = {} is not finite", y);
}

}  // namespace

double LawFit::irreducible() const { return std::exp(theta[0]); }
double LawFit::log_coefficient(std::size_t term) const { return theta[1 + 2 * term] + theta[2 + 2 * term] * center[term]; }

LawFit fit_law(const LawData& data, const LawOptions& options) {
  check(data);
  LawFit fit{.num_terms = data.num_terms()};
  for (std::size_t k = 0; k < data.num_terms(); ++k) {
    fit.center[k] = std::accumulate(data.log_x[k].begin(), data.log_x[k].end(), 0.0) / static_cast<double>(data.num_runs());
  }
  const Problem problem(data, fit.center);
  fit.delta = options.huber_delta > 0 ? options.huber_delta : kPublishedDelta;
  Minimum best;
  for (const auto& start : starts(problem)) {
    const auto minimum = minimize(problem, start.theta, fit.delta, 4);
    ++fit.num_starts;
    if (minimum.value < best.value) best = minimum;
  }
  UQA_CHECK(std::isfinite(best.value), ErrorCode::kNumeric, "no start of {} led to a finite fit; look at the sizes and losses of the runs", fit.num_starts);
  fit.theta = best.theta;
  describe(fit, problem);
  if (options.huber_delta <= 0 && fit.degrees_of_freedom > 0) {
    for (int pass = 0; pass < 5; ++pass) {
      const double delta = std::max(1.345 * robust_spread(fit), 1e-9);
      if (std::abs(delta - fit.delta) < 1e-3 * fit.delta) break;
      fit.delta = delta;
      fit.theta = minimize(problem, fit.theta, delta, 4).theta;
      describe(fit, problem);
    }
  }
  return fit;
}

LawFit refit_law(const LawData& data, const LawFit& from) {
  LawFit fit{.num_terms = from.num_terms, .center = from.center, .delta = from.delta, .num_starts = 1};
  const Problem problem(data, fit.center);
  fit.theta = minimize(problem, from.theta, fit.delta, 3).theta;
  describe(fit, problem);
  return fit;
}

double log_prediction(const LawFit& shape, const Theta& theta, std::span<const double> log_x) {
  double x[kMaxTerms];
  for (std::size_t k = 0; k < shape.num_terms; ++k) x[k] = log_x[k] - shape.center[k];
  Theta unused;
  return log_law(theta, x, shape.num_terms, unused);
}

}  // namespace uqa::fit
