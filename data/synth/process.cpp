#include "data/synth/process.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <numbers>
#include <unordered_map>

#include "core/random.h"

namespace uqa::data::synth {
namespace {

double unit(std::uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

std::size_t octave(std::size_t lag) { return static_cast<std::size_t>(std::bit_width(lag)) - 1; }

std::vector<double> normals(std::uint64_t key, std::size_t count) {
  PhiloxStream random(key);
  std::vector<double> out;
  out.reserve(count + 1);
  while (out.size() < count) {
    const double radius = std::sqrt(-2 * std::log(1 - random.uniform_double())), angle = 2 * std::numbers::pi * random.uniform_double();
    out.push_back(radius * std::cos(angle));
    out.push_back(radius * std::sin(angle));
  }
  out.resize(count);
  return out;
}

}  // namespace

Process::Process(const SynthConfig& resolved) : config_(resolved), catalog_(resolved), num_clusters_(static_cast<std::size_t>(resolved.clusters)) {
  const auto seed = static_cast<std::uint64_t>(config_.seed);
  user_key_ = stream_key(seed, "synth/user");
  successor_key_ = stream_key(seed, "synth/successor");
  rule_key_ = stream_key(seed, "synth/rule");
  fade_ = std::exp(-1 / config_.interest_memory);

  double sum = 0;
  for (std::int64_t lag = 1; lag <= config_.lags; ++lag) lag_share_.push_back(std::pow(static_cast<double>(lag), -config_.lag_power));
  for (const double share : lag_share_) sum += share;
  double below = 0;
  for (double& share : lag_share_) {
    share /= sum;
    lag_below_.push_back(below += share);
  }

  std::vector<double> popularity;
  for (std::size_t g = 0; g < num_clusters_; ++g) popularity.push_back(std::log(static_cast<double>(catalog_.size(static_cast<std::int64_t>(g)))));
  make_rows(base_, popularity);
  // A row's logits are popularity plus structure, so that the log keeps its skew.
  const auto with_popularity = [&](std::vector<double> logits) {
    for (std::size_t i = 0; i < logits.size(); ++i) logits[i] += popularity[i % num_clusters_];
    return logits;
  };
  transition_.resize(octave(static_cast<std::size_t>(config_.lags)) + 1);
  for (std::size_t o = 0; o < transition_.size(); ++o) {
    make_rows(transition_[o], with_popularity(power_law_logits(mix_key(stream_key(seed, "synth/transition"), o))));
  }
  auto rules = normals(stream_key(seed, "synth/rules"), num_clusters_ * num_clusters_);
  for (double& logit : rules) logit *= config_.rule_strength;
  make_rows(rule_, with_popularity(std::move(rules)));

  item_below_.reserve(static_cast<std::size_t>(config_.items));
  for (std::size_t g = 0; g < num_clusters_; ++g) {
    const auto size = catalog_.size(static_cast<std::int64_t>(g));
    double total = 0, running = 0, entropy = 0;
    for (std::int64_t r = 0; r < size; ++r) total += std::pow(static_cast<double>(r + 1), -config_.zipf);
    for (std::int64_t r = 0; r < size; ++r) {
      const double share = std::pow(static_cast<double>(r + 1), -config_.zipf) / total;
      entropy -= share * std::log(share);
      item_below_.push_back(r + 1 == size ? 1 : running += share);
    }
    cluster_entropy_.push_back(entropy);
  }
  for (const auto attribute : {Attribute::kCategory, Attribute::kBrand, Attribute::kShop}) shares_[static_cast<int>(attribute)] = shares_of(attribute);
}

/// strength * sum over k of k^-spectrum u_k[row] v_k[column], scaled to standard deviation `strength`.
std::vector<double> Process::power_law_logits(std::uint64_t key) const {
  const std::size_t n = num_clusters_, rank = std::min<std::size_t>(n, 256);
  const auto u = normals(mix_key(key, 1), n * rank), v = normals(mix_key(key, 2), n * rank);
  std::vector<double> singular;
  double square = 0;
  for (std::size_t k = 0; k < rank; ++k) {
    singular.push_back(std::pow(static_cast<double>(k + 1), -config_.spectrum));
    square += singular.back() * singular.back();
  }
  std::vector<double> logits(n * n, 0), scaled(rank);
  const double scale = config_.strength / std::sqrt(square);
  for (std::size_t row = 0; row < n; ++row) {
    for (std::size_t k = 0; k < rank; ++k) scaled[k] = scale * singular[k] * u[row * rank + k];
    for (std::size_t column = 0; column < n; ++column) {
      double sum = 0;
      for (std::size_t k = 0; k < rank; ++k) sum += scaled[k] * v[column * rank + k];
      logits[row * n + column] = sum;
    }
  }
  return logits;
}

/// Softmax of each row, and its alias table (Vose).
void Process::make_rows(Rows& rows, const std::vector<double>& logits) const {
  const std::size_t n = num_clusters_;
  rows.probability = logits;
  rows.alias.resize(logits.size());
  std::vector<double> scaled(n);
  std::vector<std::size_t> small, large;
  for (std::size_t begin = 0; begin < logits.size(); begin += n) {
    const auto row = std::span(rows.probability).subspan(begin, n);
    const double most = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (double& p : row) sum += p = std::exp(p - most);
    small.clear();
    large.clear();
    for (std::size_t i = 0; i < n; ++i) {
      row[i] /= sum;
      scaled[i] = row[i] * static_cast<double>(n);
      (scaled[i] < 1 ? small : large).push_back(i);
      rows.alias[begin + i] = {.keep = 1, .other = static_cast<std::int32_t>(i)};
    }
    while (!small.empty() && !large.empty()) {
      const auto low = small.back(), high = large.back();
      small.pop_back();
      rows.alias[begin + low] = {.keep = static_cast<float>(scaled[low]), .other = static_cast<std::int32_t>(high)};
      scaled[high] -= 1 - scaled[low];
      if (scaled[high] < 1) {
        large.pop_back();
        small.push_back(high);
      }
    }
  }
}

std::int32_t Process::draw_row(const Rows& rows, std::size_t row, double u) const {
  const double place = u * static_cast<double>(num_clusters_);
  const auto column = std::min(static_cast<std::size_t>(place), num_clusters_ - 1);
  const auto& alias = rows.alias[row * num_clusters_ + column];
  return place - static_cast<double>(column) < static_cast<double>(alias.keep) ? static_cast<std::int32_t>(column) : alias.other;
}

std::int32_t Process::item_at(std::int32_t cluster, double u) const {
  const auto first = item_below_.begin() + catalog_.first_item(cluster), last = item_below_.begin() + catalog_.first_item(cluster + 1);
  return static_cast<std::int32_t>(std::upper_bound(first, last - 1, u) - item_below_.begin());
}

std::int32_t Process::successor_of(std::int32_t item, std::int32_t cluster) const {
  return item_at(cluster, unit(mix_key(mix_key(successor_key_, static_cast<std::uint64_t>(item)), static_cast<std::uint64_t>(cluster))));
}

std::size_t Process::rule_row(std::int32_t newest, std::int32_t second) const {
  return mix_key(mix_key(rule_key_, static_cast<std::uint64_t>(newest)), static_cast<std::uint64_t>(second)) % num_clusters_;
}

template <typename Random>
std::int32_t Process::draw_cluster(const std::vector<std::int32_t>& clusters, Random& random) const {
  const std::size_t t = clusters.size();
  double u = random.uniform_double();
  const double v = random.uniform_double();
  if (u < config_.interest) {
    // The prior counts as one interaction; a fading count of the others chooses one of them.
    const double faded = (1 - std::pow(fade_, static_cast<double>(t))) / (1 - fade_);
    const double place = u / config_.interest * (1 + faded);
    if (place < 1 || t == 0) return draw_row(base_, 0, v);
    const double ago = std::log1p(-std::min((place - 1) * (1 - fade_), 1 - 1e-15)) / std::log(fade_);
    return clusters[t - 1 - std::min(static_cast<std::size_t>(ago), t - 1)];
  }
  u -= config_.interest;
  if (u < config_.transition) {
    const auto lag = static_cast<std::size_t>(std::lower_bound(lag_below_.begin(), lag_below_.end() - 1, u / config_.transition) - lag_below_.begin()) + 1;
    if (lag > t) return draw_row(base_, 0, v);
    return draw_row(transition_[octave(lag)], static_cast<std::size_t>(clusters[t - lag]), v);
  }
  u -= config_.transition;
  if (u < config_.rule && t >= 2) return draw_row(rule_, rule_row(clusters[t - 1], clusters[t - 2]), v);
  return draw_row(base_, 0, v);
}

void Process::history(std::int64_t user, std::int64_t length, std::vector<std::int32_t>& out) const {
  PhiloxStream random(mix_key(user_key_, static_cast<std::uint64_t>(user)));
  out.clear();
  std::vector<std::int32_t> clusters;
  clusters.reserve(static_cast<std::size_t>(length));
  for (std::int64_t t = 0; t < length; ++t) {
    const auto cluster = draw_cluster(clusters, random);
    const double u = random.uniform_double(), v = random.uniform_double();
    out.push_back(t > 0 && u < config_.successor ? successor_of(out.back(), cluster) : item_at(cluster, v));
    clusters.push_back(cluster);
  }
}

std::vector<std::int32_t> Process::history(std::int64_t user, std::int64_t length) const {
  std::vector<std::int32_t> out;
  history(user, length, out);
  return out;
}

Process::Next Process::predict(std::span<const std::int32_t> history) const {
  const std::size_t n = num_clusters_, t = history.size();
  Next next;
  next.cluster.assign(n, 0);
  const auto add = [&](const Rows& rows, std::size_t row, double share) {
    const double* p = rows.probability.data() + row * n;
    for (std::size_t g = 0; g < n; ++g) next.cluster[g] += share * p[g];
  };
  const auto cluster_ago = [&](std::size_t lag) { return static_cast<std::size_t>(catalog_.cluster(history[t - lag])); };
  double base = 1 - config_.interest - config_.transition - config_.rule;
  const double faded = (1 - std::pow(fade_, static_cast<double>(t))) / (1 - fade_);
  base += config_.interest / (1 + faded);
  double weight = config_.interest / (1 + faded);
  for (std::size_t lag = 1; lag <= t && weight > 0; ++lag, weight *= fade_) next.cluster[cluster_ago(lag)] += weight;
  for (std::size_t lag = 1; lag <= lag_share_.size(); ++lag) {
    const double share = config_.transition * lag_share_[lag - 1];
    if (lag > t) {
      base += share;
    } else {
      add(transition_[octave(lag)], cluster_ago(lag), share);
    }
  }
  if (t >= 2) {
    add(rule_, rule_row(catalog_.cluster(history[t - 1]), catalog_.cluster(history[t - 2])), config_.rule);
  } else {
    base += config_.rule;
  }
  add(base_, 0, base);
  if (t > 0) {
    for (std::size_t g = 0; g < n; ++g) next.successor.push_back(successor_of(history[t - 1], static_cast<std::int32_t>(g)));
  }
  return next;
}

double Process::item_share(std::int32_t cluster, std::int32_t item) const {
  const auto i = static_cast<std::size_t>(item);
  return item_below_[i] - (item == catalog_.first_item(cluster) ? 0 : item_below_[i - 1]);
}

double Process::probability(const Next& next, std::int32_t item) const {
  const auto cluster = catalog_.cluster(item);
  const auto g = static_cast<std::size_t>(cluster);
  double share = item_share(cluster, item);
  if (!next.successor.empty()) share = (1 - config_.successor) * share + (next.successor[g] == item ? config_.successor : 0);
  return next.cluster[g] * share;
}

double Process::entropy_nats(const Next& next) const {
  const auto plogp = [](double p) { return p > 0 ? p * std::log(p) : 0; };
  double entropy = 0;
  for (std::size_t g = 0; g < num_clusters_; ++g) {
    double inside = cluster_entropy_[g];
    if (!next.successor.empty()) {
      // Every item's share shrinks by 1 - successor; one of them gains `successor`.
      const double keep = 1 - config_.successor, own = keep * item_share(static_cast<std::int32_t>(g), next.successor[g]);
      inside = keep * inside - plogp(keep) + plogp(own) - plogp(own + config_.successor);
    }
    entropy += next.cluster[g] * inside - plogp(next.cluster[g]);
  }
  return entropy;
}

Process::Best Process::best_item(const Next& next) const {
  Best best;
  for (std::size_t g = 0; g < num_clusters_; ++g) {
    for (const auto item : {catalog_.first_item(static_cast<std::int64_t>(g)), next.successor.empty() ? catalog_.first_item(static_cast<std::int64_t>(g)) : next.successor[g]}) {
      const double p = probability(next, item);
      if (p > best.probability) best = {.value = item, .probability = p};
    }
  }
  return best;
}

std::int32_t Process::value_of(Attribute attribute, std::int32_t item) const {
  switch (attribute) {
    case Attribute::kCategory: return catalog_.category(item);
    case Attribute::kBrand: return catalog_.brand(item);
    case Attribute::kShop: return catalog_.shop(item);
  }
  return 0;
}

Process::Shares Process::shares_of(Attribute attribute) const {
  Shares shares;
  for (std::int32_t g = 0; g < static_cast<std::int32_t>(num_clusters_); ++g) {
    std::map<std::int32_t, double> mass;
    for (auto item = catalog_.first_item(g); item < catalog_.first_item(g + 1); ++item) mass[value_of(attribute, item)] += item_share(g, item);
    for (const auto& [value, p] : mass) {
      shares.value.push_back(value);
      shares.mass.push_back(p);
    }
    shares.offsets.push_back(shares.value.size());
  }
  return shares;
}

Process::Best Process::best_value(const Next& next, Attribute attribute) const {
  const auto& shares = shares_[static_cast<int>(attribute)];
  std::unordered_map<std::int32_t, double> total;
  const double keep = next.successor.empty() ? 1 : 1 - config_.successor;
  for (std::size_t g = 0; g < num_clusters_; ++g) {
    for (std::size_t i = shares.offsets[g]; i < shares.offsets[g + 1]; ++i) total[shares.value[i]] += next.cluster[g] * keep * shares.mass[i];
    if (!next.successor.empty()) total[value_of(attribute, next.successor[g])] += next.cluster[g] * config_.successor;
  }
  Best best;
  for (const auto& [value, p] : total) {
    if (p > best.probability || (p == best.probability && value < best.value)) best = {.value = value, .probability = p};
  }
  return best;
}

}  // namespace uqa::data::synth
