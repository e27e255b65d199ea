// data/synth/process.h - how users choose the next item, and what the best possible prediction of it is.
//
//   const Process process(config.resolve());
//   const auto items = process.history(user, length);          // a pure function of (config, user, length)
//   const auto next = process.predict({items.data(), t});      // exact distribution of items[t] given items[0, t)
//
// The next item depends on the items before it and on nothing hidden, so its exact conditional distribution is known:
//   cluster: popularity + interest (a fading count of the user's own clusters) + transition (a random matrix for each octave of lags, with
//   singular values k^-spectrum) + rule (a row that the pair of the last two clusters chooses);
//   item of the cluster: Zipf, or with probability `successor` the one item that (last item, cluster) chooses.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/synth/catalog.h"
#include "data/synth/config.h"

namespace uqa::data::synth {

class Process {
 public:
  /// Memory: (octaves of lags + 1) * clusters^2 * 16 bytes and 8 bytes an item.
  explicit Process(const SynthConfig& resolved);
  [[nodiscard]] const SynthConfig& config() const { return config_; }
  [[nodiscard]] const Catalog& catalog() const { return catalog_; }

  /// The items of a user, oldest first. Thread-safe.
  [[nodiscard]] std::vector<std::int32_t> history(std::int64_t user, std::int64_t length) const;
  void history(std::int64_t user, std::int64_t length, std::vector<std::int32_t>& out) const;

  /// The distribution of the next item.
  struct Next {
    std::vector<double> cluster;           ///< [clusters] probability
    std::vector<std::int32_t> successor;   ///< [clusters] the item that has an extra share of its cluster; empty after an empty history
  };
  [[nodiscard]] Next predict(std::span<const std::int32_t> history) const;
  [[nodiscard]] double probability(const Next& next, std::int32_t item) const;
  [[nodiscard]] double entropy_nats(const Next& next) const;

  /// The most probable answer and its probability: what the best predictor's accuracy is made of.
  struct Best {
    std::int32_t value = 0;
    double probability = 0;
  };
  [[nodiscard]] Best best_item(const Next& next) const;
  enum class Attribute { kCategory, kBrand, kShop };
  [[nodiscard]] Best best_value(const Next& next, Attribute attribute) const;

 private:
  struct Alias {
    float keep = 1;
    std::int32_t other = 0;
  };
  /// Rows of probabilities over clusters, and the tables that draw from them.
  struct Rows {
    std::vector<double> probability;
    std::vector<Alias> alias;
  };
  struct Shares {
    std::vector<std::int32_t> value;
    std::vector<double> mass;
    std::vector<std::size_t> offsets{0};  ///< by cluster
  };
  template <typename Random>
  [[nodiscard]] std::int32_t draw_cluster(const std::vector<std::int32_t>& clusters, Random& random) const;
  [[nodiscard]] std::int32_t draw_row(const Rows& rows, std::size_t row, double u) const;
  [[nodiscard]] std::int32_t item_at(std::int32_t cluster, double u) const;
  [[nodiscard]] std::int32_t successor_of(std::int32_t item, std::int32_t cluster) const;
  [[nodiscard]] std::size_t rule_row(std::int32_t newest, std::int32_t second) const;
  [[nodiscard]] double item_share(std::int32_t cluster, std::int32_t item) const;
  void make_rows(Rows& rows, const std::vector<double>& logits) const;
  [[nodiscard]] std::vector<double> power_law_logits(std::uint64_t key) const;
  [[nodiscard]] Shares shares_of(Attribute attribute) const;
  [[nodiscard]] std::int32_t value_of(Attribute attribute, std::int32_t item) const;

  SynthConfig config_;
  Catalog catalog_;
  std::size_t num_clusters_;
  std::uint64_t user_key_, successor_key_, rule_key_;
  double fade_;                             ///< of an interest, a step
  std::vector<double> lag_share_;           ///< [lags]
  std::vector<double> lag_below_;           ///< [lags] cumulative
  Rows base_;                               ///< one row: popularity of clusters
  std::vector<Rows> transition_;            ///< by octave of the lag
  Rows rule_;
  std::vector<double> item_below_;          ///< [items] cumulative popularity inside the cluster, the item's own included
  std::vector<double> cluster_entropy_;     ///< [clusters] of that popularity, nats
  Shares shares_[3];                        ///< by Attribute
};

}  // namespace uqa::data::synth
