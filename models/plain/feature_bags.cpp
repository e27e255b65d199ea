#include "models/plain/feature_bags.h"

#include <tuple>

#include "models/layers/no_autocast.h"

namespace uqa::models::plain {

Tensor bag_means(const Tensor& table_VD, const Tensor& ids_N, const Tensor& offsets_B1) {
  const NoAutocast no_autocast;
  const auto num_bags = offsets_B1.size(0) - 1;
  // Connected to the table here too.
  if (ids_N.size(0) == 0) return at::zeros({num_bags, table_VD.size(1)}, table_VD.options()) + table_VD.narrow(0, 0, 0).sum();
  constexpr std::int64_t kMean = 1;
  return std::get<0>(at::embedding_bag(table_VD, ids_N, offsets_B1, /*scale_grad_by_freq=*/false, kMean, /*sparse=*/false, /*per_sample_weights=*/{},
                                       /*include_last_offset=*/true));
}

Tensor feature_bags(const std::vector<Tensor>& tables, const std::vector<std::size_t>& table_of_feature, const std::vector<FeatureTensor>& features,
                    std::int64_t num_rows) {
  std::vector<Tensor> columns(features.size());
  // All features of a table at once: their bags one after the other.
  for (std::size_t t = 0; t < tables.size(); ++t) {
    const auto device = tables[t].device();
    std::vector<Tensor> ids, offsets;
    std::int64_t num_ids = 0;
    for (std::size_t f = 0; f < features.size(); ++f) {
      if (table_of_feature[f] != t) continue;
      const auto& feature = features[f];
      ids.push_back(feature.values.to(device));
      const auto starts = feature.offsets.defined() ? feature.offsets.to(device).narrow(0, 0, num_rows) : at::arange(num_rows, ids.back().options());
      offsets.push_back(starts + num_ids);
      num_ids += feature.values.size(0);
    }
    if (ids.empty()) continue;
    offsets.push_back(at::full({1}, num_ids, ids.front().options()));
    const auto means_BD = bag_means(tables[t], at::cat(ids), at::cat(offsets));
    std::int64_t bag = 0;
    for (std::size_t f = 0; f < features.size(); ++f) {
      if (table_of_feature[f] != t) continue;
      columns[f] = means_BD.narrow(0, bag, num_rows);
      bag += num_rows;
    }
  }
  return at::cat(columns, 1);
}

}  // namespace uqa::models::plain
