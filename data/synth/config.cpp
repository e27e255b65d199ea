#include "data/synth/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>

#include "core/text.h"

namespace uqa::data::synth {
namespace {

constexpr std::array kFeatures{"cate", "brand", "shop", "seller", "tokens"};
constexpr std::int64_t kMaxId = std::numeric_limits<std::int32_t>::max() - 1;

/// `items` times a published proportion, at least 1.
std::int64_t share(std::int64_t items, double of_published) {
  return std::max<std::int64_t>(1, std::llround(static_cast<double>(items) * of_published / 994'447));
}

void require(bool ok, const char* field, double value, const char* rule) {
  UQA_CHECK(ok, ErrorCode::kConfig, "{} = {}, must be {}", field, value, rule);
}

}  // namespace

SynthConfig SynthConfig::resolve() const {
  SynthConfig c = *this;
  const auto in = [](const char* field, std::int64_t value, std::int64_t low, std::int64_t high) {
    UQA_CHECK(value >= low && value <= high, ErrorCode::kConfig, "{} = {}, must be in [{}, {}]", field, value, low, high);
  };
  in("users", users, 1, std::numeric_limits<std::int64_t>::max() / 4);
  in("items", items, 2, kMaxId);
  in("seed", seed, 0, std::numeric_limits<std::int64_t>::max());
  UQA_CHECK(interactions >= 2 * users, ErrorCode::kConfig, "interactions = {}, must be at least 2 for each of the {} users; give more, or fewer users",
            interactions, users);
  if (c.clusters == 0) c.clusters = std::clamp<std::int64_t>(std::llround(2 * std::sqrt(static_cast<double>(items))), 2, std::min<std::int64_t>(512, items));
  in("clusters", c.clusters, 2, std::min<std::int64_t>(4096, items));
  if (c.categories == 0) c.categories = std::clamp<std::int64_t>(share(items, 9'330), c.clusters, items);
  in("categories", c.categories, c.clusters, items);
  if (c.brands == 0) c.brands = share(items, 149'750);
  in("brands", c.brands, 1, kMaxId);
  if (c.shops == 0) c.shops = share(items, 268'446);
  in("shops", c.shops, 1, kMaxId);
  if (c.token_rows == 0) c.token_rows = std::clamp<std::int64_t>(share(items, 151'936), 256, 151'936);
  in("token_rows", c.token_rows, 1, kMaxId);
  std::set<std::string> seen;
  for (const auto& name : features) {
    UQA_CHECK(std::find(kFeatures.begin(), kFeatures.end(), name) != kFeatures.end(), ErrorCode::kConfig,
              "features has '{}', must be a subset of cate,brand,shop,seller,tokens{}", name, suggestion(name, {kFeatures.begin(), kFeatures.end()}));
    UQA_CHECK(seen.insert(name).second, ErrorCode::kConfig, "features names '{}' twice; name it once", name);
  }
  require(length_sigma >= 0 && length_sigma <= 3, "length_sigma", length_sigma, "in [0, 3]");
  require(zipf >= 0 && zipf <= 5, "zipf", zipf, "in [0, 5]");
  require(cluster_zipf >= 0 && cluster_zipf <= 5, "cluster_zipf", cluster_zipf, "in [0, 5]");
  require(interest >= 0, "interest", interest, ">= 0");
  require(transition >= 0, "transition", transition, ">= 0");
  require(rule >= 0, "rule", rule, ">= 0");
  UQA_CHECK(interest + transition + rule < 1, ErrorCode::kConfig,
            "interest + transition + rule = {}, must be below 1: the rest of the steps follows popularity; lower one of them", interest + transition + rule);
  require(interest_memory > 0 && interest_memory < 1e9, "interest_memory", interest_memory, "> 0");
  in("lags", lags, 1, 4096);
  require(lag_power >= 0 && lag_power <= 10, "lag_power", lag_power, "in [0, 10]");
  require(spectrum >= 0 && spectrum <= 10, "spectrum", spectrum, "in [0, 10]");
  require(strength >= 0 && strength <= 20, "strength", strength, "in [0, 20]");
  require(rule_strength >= 0 && rule_strength <= 20, "rule_strength", rule_strength, "in [0, 20]");
  require(successor >= 0 && successor < 1, "successor", successor, "in [0, 1)");
  return c;
}

bool SynthConfig::has_feature(const std::string& name) const { return std::find(features.begin(), features.end(), name) != features.end(); }

Json SynthConfig::to_json() const {
  return {{"users", users},
          {"items", items},
          {"interactions", interactions},
          {"seed", seed},
          {"clusters", clusters},
          {"categories", categories},
          {"brands", brands},
          {"shops", shops},
          {"token_rows", token_rows},
          {"features", features},
          {"length_sigma", length_sigma},
          {"zipf", zipf},
          {"cluster_zipf", cluster_zipf},
          {"interest", interest},
          {"transition", transition},
          {"rule", rule},
          {"interest_memory", interest_memory},
          {"lags", lags},
          {"lag_power", lag_power},
          {"spectrum", spectrum},
          {"strength", strength},
          {"rule_strength", rule_strength},
          {"successor", successor}};
}

}  // namespace uqa::data::synth
