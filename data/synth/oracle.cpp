#include "data/synth/oracle.h"

#include <cmath>
#include <numeric>

namespace uqa::data::synth {

void ClusteredMean::add_user(double sum, double count) {
  sums_.push_back(sum);
  counts_.push_back(count);
}

double ClusteredMean::mean() const {
  const double count = std::accumulate(counts_.begin(), counts_.end(), 0.0);
  return count > 0 ? std::accumulate(sums_.begin(), sums_.end(), 0.0) / count : 0;
}

double ClusteredMean::standard_error() const {
  const double m = mean(), users = static_cast<double>(sums_.size());
  double square = 0, count = 0;
  for (std::size_t i = 0; i < sums_.size(); ++i) {
    const double off = sums_[i] - m * counts_[i];
    square += off * off;
    count += counts_[i];
  }
  return users > 1 ? std::sqrt(square * users / (users - 1)) / count : 0;
}

void Oracle::add_user(std::span<const std::int32_t> history) {
  double entropy = 0, cross = 0, item = 0, category = 0, brand = 0, shop = 0;
  for (std::size_t t = 1; t < history.size(); ++t) {
    const auto next = process_.predict(history.first(t));
    entropy += process_.entropy_nats(next);
    cross -= std::log(process_.probability(next, history[t]));
    item += process_.best_item(next).probability;
    category += process_.best_value(next, Process::Attribute::kCategory).probability;
    brand += process_.best_value(next, Process::Attribute::kBrand).probability;
    shop += process_.best_value(next, Process::Attribute::kShop).probability;
  }
  const auto count = static_cast<double>(history.size()) - 1;
  entropy_.add_user(entropy, count);
  cross_entropy_.add_user(cross, count);
  item_.add_user(item, count);
  category_.add_user(category, count);
  brand_.add_user(brand, count);
  shop_.add_user(shop, count);
  ++users_;
  positions_ += static_cast<std::int64_t>(history.size()) - 1;
}

Json Oracle::to_json() const {
  return {{"method", "Monte Carlo over positions of generated histories; at each, the exact distribution of the next item given all items before it"},
          {"users", users_},
          {"positions", positions_},
          {"entropy_nats", entropy_.to_json()},
          {"cross_entropy_nats", cross_entropy_.to_json()},
          {"accuracy", {{"item", item_.to_json()}, {"category", category_.to_json()}, {"brand", brand_.to_json()}, {"shop", shop_.to_json()}}}};
}

}  // namespace uqa::data::synth
