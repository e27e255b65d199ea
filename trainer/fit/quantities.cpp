#include "trainer/fit/quantities.h"

#include <cmath>

#include <boost/math/distributions/students_t.hpp>

#include "core/error.h"

namespace uqa::fit {

ComputeLaw fit_compute(const std::vector<double>& log_n, const std::vector<double>& log_d, const std::vector<double>& log_c) {
  const double count = static_cast<double>(log_c.size());
  UQA_CHECK(log_c.size() >= 3, ErrorCode::kConfig, "runs with a compute = {}, C = k N^p D^q needs at least 3", log_c.size());
  double mean_n = 0, mean_d = 0, mean_c = 0;
  for (std::size_t i = 0; i < log_c.size(); ++i) {
    mean_n += log_n[i] / count;
    mean_d += log_d[i] / count;
    mean_c += log_c[i] / count;
  }
  double nn = 0, nd = 0, dd = 0, nc = 0, dc = 0, cc = 0;
  for (std::size_t i = 0; i < log_c.size(); ++i) {
    const double n = log_n[i] - mean_n, d = log_d[i] - mean_d, c = log_c[i] - mean_c;
    nn += n * n;
    nd += n * d;
    dd += d * d;
    nc += n * c;
    dc += d * c;
    cc += c * c;
  }
  const double determinant = nn * dd - nd * nd;
  UQA_CHECK(determinant > 1e-9 * nn * dd, ErrorCode::kConfig, "N and D grow together in all runs: C = k N^p D^q cannot be told apart; add runs that vary one alone");
  ComputeLaw law;
  law.p = (nc * dd - dc * nd) / determinant;
  law.q = (dc * nn - nc * nd) / determinant;
  law.log_k = mean_c - law.p * mean_n - law.q * mean_d;
  law.r_squared = cc > 0 ? (law.p * nc + law.q * dc) / cc : 1;
  return law;
}

std::vector<Quantity> law_quantities(const LawFit& fit, const std::vector<std::string>& axes) {
  std::vector<Quantity> all{{.name = "E", .value = [](const Theta& t) { return std::exp(t[0]); }, .lowest = 0}};
  for (std::size_t k = 0; k < fit.num_terms; ++k) {
    const bool data = axes.at(k) == "D";
    const double center = fit.center[k];
    all.push_back({.name = data ? "B" : "A", .value = [k, center](const Theta& t) { return std::exp(t[1 + 2 * k] + t[2 + 2 * k] * center); }, .scale = Scale::kLog});
    all.push_back({.name = data ? "beta" : "alpha", .value = [k](const Theta& t) { return t[2 + 2 * k]; }});
  }
  return all;
}

std::vector<Quantity> frontier_quantities(const ComputeLaw& compute) {
  const auto exponent = [compute](const Theta& t, double over) { return over / (compute.p * t[4] + compute.q * t[2]); };
  return {{.name = "a", .value = [exponent](const Theta& t) { return exponent(t, t[4]); }},
          {.name = "b", .value = [exponent](const Theta& t) { return exponent(t, t[2]); }}};
}

std::array<double, 2> optimal_sizes(const LawFit& fit, const Theta& theta, const ComputeLaw& compute, double log_c) {
  // alpha A N^-alpha / p = beta B D^-beta / q, with log A and log B uncentred.
  const double alpha = theta[2], beta = theta[4];
  const double log_a = theta[1] + alpha * fit.center[0], log_b = theta[3] + beta * fit.center[1];
  const double balance = std::log(compute.q * alpha / (compute.p * beta)) + log_a - log_b;  // = alpha log N - beta log D
  const double log_n = (beta * (log_c - compute.log_k) + compute.q * balance) / (compute.p * beta + compute.q * alpha);
  return {log_n, (log_c - compute.log_k - compute.p * log_n) / compute.q};
}

std::int64_t runs_to_halve(std::int64_t num_runs, std::int64_t num_parameters, double confidence) {
  const auto width = [&](std::int64_t runs) {
    const boost::math::students_t student(static_cast<double>(runs - num_parameters));
    return boost::math::quantile(student, 1 - (1 - confidence) / 2) / std::sqrt(static_cast<double>(runs));
  };
  UQA_CHECK(num_runs > num_parameters, ErrorCode::kInternal, "{} runs for {} parameters", num_runs, num_parameters);
  const double wanted = width(num_runs) / 2;
  std::int64_t runs = num_runs;
  while (width(runs) > wanted) ++runs;
  return runs - num_runs;
}

}  // namespace uqa::fit
