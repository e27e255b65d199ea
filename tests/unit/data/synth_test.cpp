#include <cmath>
#include <numeric>

#include <gtest/gtest.h>

#include "core/random.h"
#include "data/dataset.h"
#include "data/import/import.h"
#include "data/questions/builder.h"
#include "data/synth/oracle.h"
#include "data/synth/write.h"
#include "questions_oracle.h"
#include "tests/support/expect_error.h"
#include "tests/support/source_dir.h"
#include "tests/support/temp_dir.h"

namespace uqa::data::synth {
namespace {

SynthConfig small_config() {
  SynthConfig c;
  c.users = 300;
  c.items = 400;
  c.interactions = 12'000;
  c.seed = 5;
  c.clusters = 12;
  c.categories = 20;
  c.brands = 30;
  c.shops = 25;
  return c;
}

Dataset write_and_open(const SynthConfig& config, const fs::path& output, std::int64_t part = 500'000) {
  static_cast<void>(write_synth(config, {.output = output, .format = "hdf5", .part_interactions = part, .oracle_positions = 0}));
  return Dataset::open(output);
}

TEST(Synth, TheSameSeedGivesTheSameLogWhateverThePartsAndAnotherSeedAnother) {
  const tests::TempDir dir;
  const auto one = write_and_open(small_config(), dir.path() / "one");
  const auto parts = write_and_open(small_config(), dir.path() / "parts", 700);
  auto other = small_config();
  other.seed = 6;
  EXPECT_EQ(one.digest(), parts.digest());
  EXPECT_NE(one.digest(), write_and_open(other, dir.path() / "other").digest());
  EXPECT_TRUE(fs::exists(dir.path() / "parts" / "shard-00010.h5"));
  EXPECT_FALSE(fs::exists(dir.path() / "one" / "shard-00001.h5"));
  EXPECT_EQ(one.num_users(), 300);
  EXPECT_EQ(one.num_interactions(), 12'000);
  std::int64_t shortest = 1000, longest = 0;
  for (std::int64_t u = 0; u < one.num_users(); ++u) {
    shortest = std::min(shortest, one.length(u));
    longest = std::max(longest, one.length(u));
  }
  EXPECT_GE(shortest, 2);
  EXPECT_GT(longest, 80);  // log-normal: far beyond the mean of 40
}

TEST(Synth, AUsersHistoryDoesNotDependOnOtherUsersNorOnItsOwnEnd) {
  const Process process(small_config().resolve());
  const auto long_history = process.history(17, 90), short_history = process.history(17, 30);
  EXPECT_TRUE(std::equal(short_history.begin(), short_history.end(), long_history.begin()));
  EXPECT_NE(process.history(18, 30), short_history);
}

TEST(Synth, TheImportedArrowFilesAreTheDataDirectoryThatIsWrittenDirectly) {
  const tests::TempDir dir;
  const auto direct = write_and_open(small_config(), dir.path() / "direct");
  static_cast<void>(write_synth(small_config(), {.output = dir.path() / "arrow", .format = "arrow", .part_interactions = 900, .oracle_positions = 0}));
  import::ImportOptions options;
  options.inputs = {dir.path() / "arrow" / "pretrain_data_train.arrow", dir.path() / "arrow" / "pretrain_data_eval.arrow", dir.path() / "arrow" / "items.arrow"};
  options.output = dir.path() / "imported";
  const auto report = import::run_import(SourceSchema::read(dir.path() / "arrow" / "schema.json"), options);
  EXPECT_EQ(report.digest, direct.digest());
  EXPECT_EQ(report.dropped_users, 0);
  EXPECT_EQ(report.items_without_row, 0);

  // The published schema reads the two files of histories as they are.
  options.inputs.pop_back();
  options.output = dir.path() / "published";
  const auto published = import::run_import(SourceSchema::read(tests::source_dir() / "recipes" / "uqabench.schema.json"), options);
  EXPECT_EQ(published.num_interactions, 12'000);
  const auto data = Dataset::open(options.output);
  ASSERT_EQ(data.schema().features.size(), 10u);
  for (std::int64_t u = 0; u < data.num_users(); u += 37) {
    for (std::int64_t t = 0; t < data.length(u); ++t) {
      for (std::size_t f = 0; f < 10; ++f) ASSERT_TRUE(std::ranges::equal(data.values(f, u, t), direct.values(f, u, t)));
    }
  }
}

TEST(Synth, ProbabilitiesSumToOneAndTheEntropyIsThatOfTheWholeCatalogue) {
  const Process process(small_config().resolve());
  const auto history = process.history(3, 80);
  for (const std::size_t t : {0, 1, 2, 9, 79}) {
    const auto next = process.predict(std::span(history).first(t));
    double sum = 0, entropy = 0;
    Process::Best best;
    std::map<std::int32_t, double> categories, brands;
    for (std::int32_t i = 0; i < process.config().items; ++i) {
      const double p = process.probability(next, i);
      sum += p;
      entropy -= p > 0 ? p * std::log(p) : 0;
      if (p > best.probability) best = {.value = i, .probability = p};
      categories[process.catalog().category(i)] += p;
      brands[process.catalog().brand(i)] += p;
    }
    EXPECT_NEAR(sum, 1, 1e-9) << t;
    EXPECT_NEAR(process.entropy_nats(next), entropy, 1e-9) << t;
    EXPECT_EQ(process.best_item(next).value, best.value) << t;
    const auto most = [](const auto& shares) { return std::ranges::max_element(shares, {}, [](const auto& s) { return s.second; })->second; };
    EXPECT_NEAR(process.best_value(next, Process::Attribute::kCategory).probability, most(categories), 1e-9) << t;
    EXPECT_NEAR(process.best_value(next, Process::Attribute::kBrand).probability, most(brands), 1e-9) << t;
  }
}

// What is generated follows what is predicted: the mean surprise equals the mean entropy, the best predictor is right as often as it says, and
// cluster frequencies agree position by position.
TEST(Synth, GeneratedItemsFollowThePredictedDistribution) {
  const Process process(small_config().resolve());
  ClusteredMean surprise, hits;
  std::vector<double> expected(static_cast<std::size_t>(process.config().clusters), 0), seen = expected;
  double positions = 0;
  for (std::int64_t u = 0; u < 1500; ++u) {
    const auto history = process.history(u, 24);
    double off = 0, hit = 0;
    for (std::size_t t = 1; t < history.size(); ++t) {
      const auto next = process.predict(std::span(history).first(t));
      off += -std::log(process.probability(next, history[t])) - process.entropy_nats(next);
      const auto best = process.best_item(next);
      hit += (best.value == history[t] ? 1 : 0) - best.probability;
      for (std::size_t g = 0; g < expected.size(); ++g) expected[g] += next.cluster[g];
      seen[static_cast<std::size_t>(process.catalog().cluster(history[t]))] += 1;
    }
    surprise.add_user(off, 23);
    hits.add_user(hit, 23);
    positions += 23;
  }
  EXPECT_LT(std::abs(surprise.mean()), 4 * surprise.standard_error()) << surprise.mean();
  EXPECT_LT(surprise.standard_error(), 0.02);
  EXPECT_LT(std::abs(hits.mean()), 4 * hits.standard_error()) << hits.mean();
  double chi_square = 0;
  for (std::size_t g = 0; g < expected.size(); ++g) {
    EXPECT_GT(expected[g], 50);
    chi_square += (seen[g] - expected[g]) * (seen[g] - expected[g]) / expected[g];
  }
  EXPECT_LT(chi_square, 40) << "11 degrees of freedom at most; the 0.9999 quantile is 37";
  EXPECT_GT(positions, 30'000);
}

// One fixed history, its next item drawn many times: what each part of the mixture says is really drawn.
TEST(Synth, StructureIsLearnableAtEveryStep) {
  const Process process(small_config().resolve());
  ClusteredMean entropy, popularity;
  std::vector<double> share(static_cast<std::size_t>(process.config().items), 0);
  std::vector<std::vector<std::int32_t>> histories;
  for (std::int64_t u = 0; u < 400; ++u) {
    histories.push_back(process.history(u, 40));
    for (const auto item : histories.back()) share[static_cast<std::size_t>(item)] += 1.0 / 16'000;
  }
  for (const auto& history : histories) {
    double h = 0, p = 0;
    for (std::size_t t = 1; t < history.size(); ++t) {
      h += process.entropy_nats(process.predict(std::span(history).first(t)));
      p -= std::log(share[static_cast<std::size_t>(history[t])]);
    }
    entropy.add_user(h, 39);
    popularity.add_user(p, 39);
  }
  EXPECT_GT(popularity.mean() - entropy.mean(), 0.4) << "nats that a model of the history gains over popularity";
  EXPECT_GT(entropy.mean(), 1.0);
}

TEST(Synth, AnOracleAnswersEveryQuestionOfEveryType) {
  const tests::TempDir dir;
  const auto data = write_and_open(small_config(), dir.path() / "data");
  QuestionBuildOptions options;
  options.per_type_train = 80;
  options.per_type_test = 40;
  const auto view = view_of(data);
  const auto built = make_questions(view, options);
  const data::Oracle reader(view, {{"category", "category"}, {"brand", "brand"}, {"shop", "shop"}});
  std::map<QuestionType, int> types;
  for (const auto* list : {&built.train, &built.test}) {
    for (const auto& q : *list) {
      ++types[q.type];
      for (std::size_t i = 0; i < q.options.size(); ++i) {
        ASSERT_EQ(reader.truth(q, q.options[i]), std::optional(i == q.gold())) << q.text << "\noption " << i;
      }
    }
  }
  EXPECT_EQ(types.size(), kQuestionTypes.size()) << "all seven types; five follow from the history alone";
}

TEST(Synth, TheReportSaysWhatTheBestModelReaches) {
  const tests::TempDir dir;
  const auto report = write_synth(small_config(), {.output = dir.path() / "data", .format = "hdf5", .oracle_positions = 4000});
  const auto& oracle = report.at("oracle");
  const double entropy = oracle.at("entropy_nats").at("mean"), cross = oracle.at("cross_entropy_nats").at("mean"), error = oracle.at("cross_entropy_nats").at("standard_error");
  EXPECT_GT(oracle.at("positions").get<std::int64_t>(), 2000);
  EXPECT_LT(std::abs(entropy - cross), 4 * error);
  EXPECT_LT(entropy, report.at("popularity_entropy_nats").get<double>());
  const auto accuracy = [&](const char* what) { return oracle.at("accuracy").at(what).at("mean").get<double>(); };
  EXPECT_GT(accuracy("item"), 0.02);
  EXPECT_GT(accuracy("category"), accuracy("item"));
  EXPECT_EQ(read_json(dir.path() / "data" / "generator.json"), report);
}

TEST(Synth, WrongSettingsAreRefusedAndNothingIsWritten) {
  const tests::TempDir dir;
  const auto refuse = [&](auto&& change, const std::string& part) {
    auto config = small_config();
    change(config);
    EXPECT_UQA_ERROR(write_synth(config, {.output = dir.path() / "out"}), ErrorCode::kConfig, part);
  };
  refuse([](auto& c) { c.users = 0; }, "users = 0");
  refuse([](auto& c) { c.interactions = 500; }, "interactions = 500");
  refuse([](auto& c) { c.clusters = 401; }, "clusters = 401");
  refuse([](auto& c) { c.categories = 3; }, "categories = 3");
  refuse([](auto& c) { c.interest = 0.9; }, "below 1");
  refuse([](auto& c) { c.successor = 1; }, "successor = 1");
  refuse([](auto& c) { c.features = {"brnd"}; }, "did you mean 'brand'");
  EXPECT_UQA_ERROR(write_synth(small_config(), {.output = dir.path() / "out", .format = "hdf"}), ErrorCode::kConfig, "hdf5");
  EXPECT_FALSE(fs::exists(dir.path() / "out"));
  EXPECT_FALSE(fs::exists(dir.path() / "out.tmp"));
}

}  // namespace
}  // namespace uqa::data::synth
