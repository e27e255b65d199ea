#include "trainer/fit/study_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/fit/synthetic.h"

namespace uqa::fit {
namespace {

using testing::HasSubstr;
using testing::Not;

/// A study in small: seven widths at full data, five fractions at one width, two seeds, two alignments of each pre-training.
Table study_table(double between_widths = 0) {
  Table table{.source = "points.csv", .columns = {"name", "encoder", "llm", "adapter", "tokens", "width", "depth", "max_len", "fraction", "seed", "n_backbone", "n_total", "d_interactions", "c_flops",
                                                  "c_flops_no_softmax", "loss_nats", "metric", "acc_df", "acc_df_n"},
              .rows = {}};
  PhiloxStream random(11);
  const auto add = [&](int width, double fraction, int seed) {
    const double n = 24.0 * width * width, total = n + 2000.0 * width, d = 3e6 * fraction;
    const double shift = between_widths * (width % 16 == 0 ? 1 : -1);
    const double z = normal_quantile(0.5e-9 + (1 - 1e-9) * random.uniform_double());
    const double loss = (2.1 + 28 * std::pow(n, -0.33) + 90 * std::pow(d, -0.34)) * std::exp(0.002 * z + shift);
    for (const char* llm : {"small", "large"}) {
      const double accuracy = 0.25 + 0.4 / (1 + std::exp(2 * (loss - 4))) + (llm[0] == 'l' ? 0.03 : 0);
      table.rows.push_back({fmt::format("w{}-f{}-s{}", width, fraction, seed), "sasrec", llm, "linear", "1", fmt::format("{}", width), "2", "64", fmt::format("{}", fraction), fmt::format("{}", seed),
                            fmt::format("{}", n), fmt::format("{}", total), fmt::format("{}", d), fmt::format("{}", 8 * total * d), fmt::format("{}", 6 * n * d), fmt::format("{}", loss), "0.05",
                            fmt::format("{}", accuracy), "600"});
    }
  };
  for (const int seed : {1, 2}) {
    for (const int width : {8, 12, 16, 24, 32, 48, 64}) add(width, 1, seed);
    for (const double fraction : {0.03, 0.06, 0.12, 0.25, 0.5}) add(32, fraction, seed);
  }
  return table;
}

StudyFitOptions quick() { return for_study({.bootstrap = {.num_resamples = 300}}); }

const Json& law_named(const Json& fit, const std::string& name, const std::string& n) {
  for (const auto& law : fit.at("laws")) {
    if (law.at("name") == name && law.at("n") == n) return law;
  }
  throw std::runtime_error(name + " of " + n + " is missing");
}

double estimate(const Json& law, const std::string& name) {
  for (const auto& one : law.at("estimates")) {
    if (one.at("name") == name) return one.at("value").get<double>();
  }
  throw std::runtime_error(name + " is missing");
}

TEST(StudyFit, FitsEveryLawUnderEveryConvention) {
  const auto table = study_table();
  const auto fit = fit_study(table, study_columns(table), quick());
  EXPECT_EQ(fit["runs"].get<int>(), 24) << "two alignments of one pre-training are one observation";
  const auto& joint = law_named(fit, "L(N, D)", "n_backbone");
  EXPECT_NEAR(estimate(joint, "alpha"), 0.33, 0.02);
  EXPECT_NEAR(estimate(joint, "beta"), 0.34, 0.06);
  EXPECT_NEAR(estimate(joint, "E"), 2.1, 0.15);
  EXPECT_EQ(law_named(fit, "L(N, D)", "n_total")["frontier"].size(), 3u) << "6 N D, c_flops, c_flops_no_softmax";
  EXPECT_NEAR(estimate(law_named(fit, "L(N)", "n_backbone"), "alpha"), 0.33, 0.03);
  EXPECT_EQ(law_named(fit, "L(N)", "n_backbone")["runs"].get<int>(), 14);
  EXPECT_EQ(law_named(fit, "L(D)", "n_backbone")["runs"].get<int>(), 12);
  const auto& holdout = joint["holdout"];
  ASSERT_TRUE(holdout["done"].get<bool>());
  EXPECT_LT(holdout["mean_absolute_error_nats"]["law"].get<double>(), 0.1 * holdout["drop_nats"].get<double>());
  EXPECT_LT(holdout["mean_absolute_error_nats"]["law"].get<double>(), holdout["mean_absolute_error_nats"]["next_largest"].get<double>());
}

TEST(StudyFit, AccuraciesHaveACurveAnLlm) {
  const auto table = study_table();
  const auto fit = fit_study(table, study_columns(table), quick());
  ASSERT_EQ(fit["accuracy"].size(), 2u);
  EXPECT_EQ(fit["accuracy"][0]["group"], "llm = large");
  EXPECT_TRUE(fit["accuracy"][0]["sigmoid"]["fitted"].get<bool>()) << fit["accuracy"][0]["sigmoid"].dump();
  EXPECT_TRUE(fit["accuracy"][0]["trend"]["fitted"].get<bool>());
}

TEST(StudyFit, ConfigurationsAreTheUnitWhenTheyMissTheLaw) {
  const auto table = study_table(0.02);
  const auto fit = fit_study(table, study_columns(table), quick());
  const auto& law = law_named(fit, "L(N)", "n_backbone");
  EXPECT_EQ(law["unit"], "configuration");
  EXPECT_EQ(law["observations"].get<int>(), 7);
  EXPECT_THAT(law["warnings"].dump(), HasSubstr("each configuration's mean counts as one observation"));
  const auto clean_table = study_table();
  const auto clean = fit_study(clean_table, study_columns(clean_table), quick());
  EXPECT_EQ(law_named(clean, "L(N)", "n_backbone")["unit"], "run");
}

TEST(StudyFit, SaysThatADecadeIsTooLittle) {
  const auto table = study_table();
  const auto fit = fit_study(table, study_columns(table), quick());
  EXPECT_THAT(law_named(fit, "L(N, D)", "n_total")["warnings"].dump(), HasSubstr("N spans 1.1 decades: too few"));
  EXPECT_THAT(law_named(fit, "L(N)", "n_backbone")["warnings"].dump(), Not(HasSubstr("too few")));
}

TEST(StudyFit, ComputeGivesTheData) {
  Table table{.source = "t", .columns = {"size", "flop", "loss"}, .rows = {}};
  const auto data = grid(4, 4, 0.001, 3);
  for (std::size_t i = 0; i < data.num_runs(); ++i) {
    table.rows.push_back({fmt::format("{}", std::exp(data.log_x[0][i])), fmt::format("{}", 6 * std::exp(data.log_x[0][i] + data.log_x[1][i])), fmt::format("{}", std::exp(data.log_loss[i]))});
  }
  const auto fit = fit_study(table, parse_columns("n=size,c=flop,loss=loss"), {.bootstrap = {.num_resamples = 300}});
  const auto& law = fit["laws"][0];
  EXPECT_EQ(law["conventions"][1], "D = C / (6 N), C = flop");
  EXPECT_NEAR(estimate(law, "beta"), 0.37, 0.02);
  EXPECT_NEAR(law["sizes"]["D"]["low"].get<double>(), 1e7, 10);
}

TEST(StudyFit, OutliersAreThoseOfTheRule) {
  Table table{.source = "t", .columns = {"n", "d", "loss"}, .rows = {}};
  const auto data = grid(5, 5, 0.001, 3);
  for (std::size_t i = 0; i < data.num_runs(); ++i) {
    // Row 12 is far from the law, row 0 (the smallest) has the largest loss.
    table.rows.push_back({fmt::format("{}", std::exp(data.log_x[0][i])), fmt::format("{}", std::exp(data.log_x[1][i])), fmt::format("{}", std::exp(data.log_loss[i] + (i == 12 ? 0.2 : 0)))});
  }
  const auto columns = parse_columns("n=n,d=d,loss=loss");
  const auto row = [&](const std::string& rule) {
    const auto fit = fit_study(table, columns, {.bootstrap = {.num_resamples = 300}, .drop_outliers = 1, .outlier_rule = rule});
    EXPECT_EQ(fit["runs"].get<int>(), 24);
    return fit["outliers"]["runs"][0]["row"].get<int>();
  };
  EXPECT_EQ(row("loss"), 0);
  EXPECT_EQ(row("residual"), 12);
}

TEST(StudyFit, RefusesWhatNoLawFits) {
  Table table{.source = "t.csv", .columns = {"n", "d", "loss"}, .rows = {{"1e6", "1e7", "3"}, {"2e6", "1e7", "2.9"}}};
  EXPECT_UQA_ERROR((void)fit_study(table, parse_columns("n=n,d=d,loss=loss"), {}), ErrorCode::kConfig, "no law can be fitted to the 2 runs of t.csv");
  EXPECT_UQA_ERROR((void)fit_study(table, parse_columns("n=n,d=d,loss=loss"), {.drop_outliers = 2}), ErrorCode::kConfig, "drop_outliers = 2");
  EXPECT_UQA_ERROR((void)fit_study(table, parse_columns("n=n,d=d,loss=loss"), {.outlier_rule = "worst"}), ErrorCode::kConfig, "outlier_rule = worst");
  table.rows.push_back({"4e6", "1e7", "2.85"});
  const auto fit = fit_study(table, parse_columns("n=n,d=d,loss=loss"), {});
  EXPECT_THAT(render_fit(fit), HasSubstr("cannot say"));
}

TEST(StudyFit, WritesWhatItFound) {
  const tests::TempDir dir;
  const auto table = study_table();
  const auto fit = fit_study(table, study_columns(table), quick());
  write_fit(fit, dir.path());
  EXPECT_EQ(read_json(dir.path() / "fit.json")["laws"].size(), fit["laws"].size());
  const auto curves = read_table(dir.path() / "curves.csv");
  EXPECT_GT(curves.rows.size(), 100u);
  const auto low = curves.find("low_nats", "test"), high = curves.find("high_nats", "test"), loss = curves.find("loss_nats", "test");
  for (std::size_t row = 0; row < curves.rows.size(); ++row) {
    EXPECT_LT(number_at(curves, row, low).value(), number_at(curves, row, loss).value());
    EXPECT_GT(number_at(curves, row, high).value(), number_at(curves, row, loss).value());
  }
  EXPECT_GT(read_table(dir.path() / "frontier.csv").rows.size(), 0u);
  EXPECT_GT(read_table(dir.path() / "holdout.csv").rows.size(), 0u);
  EXPECT_EQ(read_table(dir.path() / "accuracy.csv").rows.size(), 48u);
  const auto text = render_fit(fit);
  EXPECT_THAT(text, HasSubstr("L(N, D) = E + A / N^alpha + B / D^beta"));
  EXPECT_THAT(text, HasSubstr("straight log-log line"));
}

}  // namespace
}  // namespace uqa::fit
