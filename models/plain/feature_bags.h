// models/plain/feature_bags.h - means of table rows from LibTorch's own operators. Differentiable through autograd.
#pragma once

#include "models/layers/feature_bags.h"

namespace uqa::models::plain {

/// Row b is the mean of rows ids[offsets[b], offsets[b + 1]) of `table` [V, D], zeros where there are none. ids int64 [N], offsets int64 [B + 1],
/// both on the table's device -> [B, D]. The table's gradient is dense.
[[nodiscard]] Tensor bag_means(const Tensor& table_VD, const Tensor& ids_N, const Tensor& offsets_B1);

/// As models::feature_bags, which has checked the features; ids and offsets may lie on the CPU. One dense gradient a table.
[[nodiscard]] Tensor feature_bags(const std::vector<Tensor>& tables, const std::vector<std::size_t>& table_of_feature,
                                  const std::vector<FeatureTensor>& features, std::int64_t num_rows);

}  // namespace uqa::models::plain
