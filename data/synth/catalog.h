// data/synth/catalog.h - the items of a generated log: cluster -> category -> brand -> shop -> seller, titles, text tokens.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "data/synth/config.h"

namespace uqa::data::synth {

/// Items of a cluster have neighbouring ids, most popular first. Memory: about 20 bytes an item.
class Catalog {
 public:
  explicit Catalog(const SynthConfig& resolved);

  [[nodiscard]] std::int64_t num_items() const { return static_cast<std::int64_t>(category_.size()); }
  [[nodiscard]] std::int64_t num_clusters() const { return static_cast<std::int64_t>(first_item_.size()) - 1; }
  [[nodiscard]] std::int32_t first_item(std::int64_t cluster) const { return first_item_[static_cast<std::size_t>(cluster)]; }
  [[nodiscard]] std::int64_t size(std::int64_t cluster) const { return first_item(cluster + 1) - first_item(cluster); }
  [[nodiscard]] std::int32_t cluster(std::int32_t item) const { return cluster_[static_cast<std::size_t>(item)]; }
  [[nodiscard]] std::int32_t category(std::int32_t item) const { return category_[static_cast<std::size_t>(item)]; }
  [[nodiscard]] std::int32_t brand(std::int32_t item) const { return brand_[static_cast<std::size_t>(item)]; }
  [[nodiscard]] std::int32_t shop(std::int32_t item) const { return shop_[static_cast<std::size_t>(item)]; }
  [[nodiscard]] std::int32_t seller(std::int32_t item) const { return seller_of_shop_[static_cast<std::size_t>(shop(item))]; }

  /// Unique words, without blanks.
  [[nodiscard]] static std::string category_name(std::int64_t category);
  [[nodiscard]] static std::string brand_name(std::int64_t brand);
  [[nodiscard]] static std::string shop_name(std::int64_t shop);
  /// "<brand> <category> <number>"; unique.
  [[nodiscard]] std::string title(std::int32_t item) const;

  enum class Text { kTitle, kCategory, kShop, kBrand, kSeller };
  /// Appends the token ids of one text of `item`; equal texts have equal tokens.
  void tokens(Text text, std::int32_t item, std::vector<std::int32_t>& out) const;

  /// Titles and the attributes category, brand and shop, values numbered by first appearance in the order of item ids, as an import
  /// numbers them.
  [[nodiscard]] ItemCatalog item_catalog() const;

 private:
  SynthConfig config_;
  std::uint64_t token_key_;
  std::vector<std::int32_t> first_item_;  ///< [clusters + 1]
  std::vector<std::int32_t> cluster_, category_, brand_, shop_;
  std::vector<std::int32_t> seller_of_shop_;  ///< a permutation
};

}  // namespace uqa::data::synth
