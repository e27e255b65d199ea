// models/layers/feature_bags.h - mean embeddings of several features, side by side in one matrix.
#pragma once

#include "models/packed.h"
#include "models/user_model.h"

namespace uqa::models {

/// Row t of the result is, for each feature in order, the mean of table rows values[offsets[t], offsets[t + 1]) (zeros for an empty
/// bag), or table row values[t] for a single-valued feature. `table_of_feature[f]` indexes `tables`; a shared table gets one dense
/// gradient over all its features, summed in row order whatever the thread count.
/// Ids may lie on any device: they are checked on the CPU, so those of a batch are best left there.
/// Shapes: tables [V, D_f] float32 or float64 -> [T, sum of D_f]. Error(kData) for an id outside its table or offsets that do not fit.
[[nodiscard]] Tensor feature_bags(const std::vector<Tensor>& tables, const std::vector<std::size_t>& table_of_feature,
                                  const std::vector<FeatureTensor>& features, std::int64_t num_rows);

}  // namespace uqa::models
