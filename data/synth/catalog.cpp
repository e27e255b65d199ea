#include "data/synth/catalog.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string_view>

#include "core/random.h"

namespace uqa::data::synth {
namespace {

/// `total` in parts that are proportional to `weights`, each at least 1 and at most `most[i]` where that is given.
std::vector<std::int64_t> apportion(std::int64_t total, const std::vector<double>& weights, const std::vector<std::int64_t>& most) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  const auto n = static_cast<std::int64_t>(weights.size());
  std::vector<std::int64_t> parts(weights.size(), 1);
  std::int64_t left = total - n;
  const auto room = [&](std::size_t i) { return most.empty() ? left : std::min(left, most[i] - parts[i]); };
  const std::int64_t spare = left;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const auto extra = std::min(room(i), static_cast<std::int64_t>(static_cast<double>(spare) * weights[i] / sum));
    parts[i] += extra;
    left -= extra;
  }
  while (left > 0) {  // what rounding left: one each, in order
    for (std::size_t i = 0; i < weights.size() && left > 0; ++i) {
      if (room(i) == 0) continue;
      ++parts[i];
      --left;
    }
  }
  return parts;
}

/// A pronounceable word for a number: syllables are its digits; different numbers give different words.
std::string word(std::int64_t number, std::string_view ending) {
  constexpr std::string_view kConsonants = "bdfgklmnprstvz";
  constexpr std::string_view kVowels = "aeiou";
  constexpr auto kBase = static_cast<std::int64_t>(kConsonants.size() * kVowels.size());
  std::vector<std::int64_t> digits;
  for (std::int64_t rest = number; rest > 0 || digits.size() < 2; rest /= kBase) digits.push_back(rest % kBase);
  std::string text;
  for (auto digit = digits.rbegin(); digit != digits.rend(); ++digit) {
    text += kConsonants[static_cast<std::size_t>(*digit) / kVowels.size()];
    text += kVowels[static_cast<std::size_t>(*digit) % kVowels.size()];
  }
  text[0] = static_cast<char>(text[0] - 'a' + 'A');
  return text.append(ending);
}

/// A number in [0, n) that (key, a, b) chooses.
std::int32_t choose(std::uint64_t key, std::uint64_t a, std::uint64_t b, std::int64_t n) {
  return static_cast<std::int32_t>(static_cast<unsigned __int128>(mix_key(mix_key(key, a), b)) * static_cast<std::uint64_t>(n) >> 64);
}

/// Values of one attribute numbered by first appearance.
ItemCatalog::Attribute attribute(const char* name, const std::vector<std::int32_t>& value_of_item, std::string (*text)(std::int64_t)) {
  ItemCatalog::Attribute out{.name = name, .vocabulary = {}, .offsets = {}, .values = {}};
  std::vector<std::int32_t> number(static_cast<std::size_t>(*std::max_element(value_of_item.begin(), value_of_item.end())) + 1, -1);
  for (const auto value : value_of_item) {
    auto& n = number[static_cast<std::size_t>(value)];
    if (n < 0) {
      n = static_cast<std::int32_t>(out.vocabulary.size());
      out.vocabulary.push_back(text(value));
    }
    out.values.push_back(n);
  }
  out.offsets.resize(value_of_item.size() + 1);
  std::iota(out.offsets.begin(), out.offsets.end(), 0);
  return out;
}

}  // namespace

Catalog::Catalog(const SynthConfig& resolved)
    : config_(resolved),
      token_key_(stream_key(static_cast<std::uint64_t>(resolved.seed), "synth/tokens")) {
  const auto& c = config_;
  const auto num_items = static_cast<std::size_t>(c.items);
  std::vector<double> weights;
  for (std::int64_t g = 0; g < c.clusters; ++g) weights.push_back(std::pow(static_cast<double>(g + 1), -c.cluster_zipf));
  const auto items_of_cluster = apportion(c.items, weights, {});
  const std::vector<double> sizes(items_of_cluster.begin(), items_of_cluster.end());
  const auto categories_of_cluster = apportion(c.categories, sizes, items_of_cluster);

  const auto brand_key = stream_key(static_cast<std::uint64_t>(c.seed), "synth/brand");
  const auto shop_key = stream_key(static_cast<std::uint64_t>(c.seed), "synth/shop");
  first_item_.push_back(0);
  for (auto* column : {&cluster_, &category_, &brand_, &shop_}) column->reserve(num_items);
  std::int64_t first_category = 0;
  for (std::size_t g = 0; g < items_of_cluster.size(); ++g) {
    for (std::int64_t rank = 0; rank < items_of_cluster[g]; ++rank) {
      const auto category = first_category + rank % categories_of_cluster[g];
      // Popular items of a category share its few large brands: the brand's number grows with the square root of the rank.
      const auto line = static_cast<std::uint64_t>(std::sqrt(static_cast<double>(rank / categories_of_cluster[g])));
      const auto brand = choose(brand_key, static_cast<std::uint64_t>(category), line, c.brands);
      cluster_.push_back(static_cast<std::int32_t>(g));
      category_.push_back(static_cast<std::int32_t>(category));
      brand_.push_back(brand);
      shop_.push_back(choose(shop_key, static_cast<std::uint64_t>(brand), static_cast<std::uint64_t>(rank % 3), c.shops));
    }
    first_category += categories_of_cluster[g];
    first_item_.push_back(static_cast<std::int32_t>(cluster_.size()));
  }
  const Permutation seller(static_cast<std::uint64_t>(c.shops), stream_key(static_cast<std::uint64_t>(c.seed), "synth/seller"));
  for (std::uint64_t shop = 0; shop < seller.size(); ++shop) seller_of_shop_.push_back(static_cast<std::int32_t>(seller(shop)));
}

std::string Catalog::category_name(std::int64_t category) { return word(category, "n"); }
std::string Catalog::brand_name(std::int64_t brand) { return word(brand, "x"); }
std::string Catalog::shop_name(std::int64_t shop) { return word(shop, "s"); }

std::string Catalog::title(std::int32_t item) const { return fmt::format("{} {} {}", brand_name(brand(item)), category_name(category(item)), item + 1); }

void Catalog::tokens(Text text, std::int32_t item, std::vector<std::int32_t>& out) const {
  const auto add = [&](std::uint64_t kind, std::int32_t id, int count) {
    for (int k = 0; k < count; ++k) out.push_back(choose(token_key_, kind * 8 + static_cast<std::uint64_t>(k), static_cast<std::uint64_t>(id), config_.token_rows));
  };
  switch (text) {
    case Text::kTitle:
      add(0, brand(item), 2);
      add(1, category(item), 2);
      add(2, item, 3);
      return;
    case Text::kBrand: add(0, brand(item), 2); return;
    case Text::kCategory: add(1, category(item), 2); return;
    case Text::kShop: add(3, shop(item), 3); return;
    case Text::kSeller: add(4, shop(item), 2); return;
  }
}

ItemCatalog Catalog::item_catalog() const {
  ItemCatalog out;
  out.titles.reserve(static_cast<std::size_t>(num_items()));
  for (std::int32_t i = 0; i < num_items(); ++i) out.titles.push_back(title(i));
  out.attributes.push_back(attribute("category", category_, category_name));
  out.attributes.push_back(attribute("brand", brand_, brand_name));
  out.attributes.push_back(attribute("shop", shop_, shop_name));
  return out;
}

}  // namespace uqa::data::synth
