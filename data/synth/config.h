// data/synth/config.h - what a generated interaction log looks like. Mathematics: docs/design/0012-studies.md.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/json.h"

namespace uqa::data::synth {

/// Sizes that are 0 follow from `items` in the proportions of the published data (resolve()).
struct SynthConfig {
  std::int64_t users = 184'520;             ///< > 0
  std::int64_t items = 994'447;             ///< > 1
  std::int64_t interactions = 31'317'087;   ///< in all, exactly; >= 2 * users
  std::int64_t seed = 1;                    ///< >= 0: everything
  std::int64_t clusters = 0;                ///< groups of items between which users move; in [2, 4096], at most items
  std::int64_t categories = 0;              ///< a cluster has one or several; in [clusters, items]
  std::int64_t brands = 0;                  ///< > 0
  std::int64_t shops = 0;                   ///< > 0; sellers are as many
  std::int64_t token_rows = 0;              ///< rows of the table of text tokens; > 0
  /// Input columns beside the item id: subset of cate, brand, shop, seller, tokens (five bags). The published layout has all.
  std::vector<std::string> features{"cate", "brand", "shop", "seller", "tokens"};
  double length_sigma = 0.612;              ///< of the log-normal history lengths; published: median 170, mean 205; >= 0
  double zipf = 1.0;                        ///< popularity of a cluster's items: rank^-zipf; >= 0
  double cluster_zipf = 0.5;                ///< size of clusters: rank^-cluster_zipf; >= 0
  double interest = 0.2;                    ///< share of steps that follow the user's own drifting interests; in [0, 1)
  double transition = 0.4;                  ///< share that follows the clusters of the last `lags` items
  double rule = 0.2;                        ///< share that follows a rule for the last two clusters together; the rest follows popularity
  double interest_memory = 20;              ///< interactions after which an interest has faded to 1/e; > 0
  std::int64_t lags = 64;                   ///< > 0
  double lag_power = 1.1;                   ///< weight of lag l: l^-lag_power; >= 0
  double spectrum = 0.7;                    ///< singular values of the transition logits: k^-spectrum; >= 0
  double strength = 2.5;                    ///< standard deviation of those logits; >= 0
  double rule_strength = 3.0;               ///< the same of the rules' logits
  double successor = 0.3;                   ///< share of steps that take the one item that belongs to (last item, next cluster); in [0, 1)

  /// The config with every 0 replaced. Error(kConfig) naming the field that is out of range.
  [[nodiscard]] SynthConfig resolve() const;
  [[nodiscard]] Json to_json() const;
  [[nodiscard]] bool has_feature(const std::string& name) const;
};

}  // namespace uqa::data::synth
