#include "models/layers/feature_bags.h"

#include <algorithm>

#include "core/error.h"
#include "models/plain/feature_bags.h"

#include <ATen/Parallel.h>

namespace uqa::models {
namespace {

/// One feature as plain pointers: its ids, its place in the output row, its table.
struct Column {
  const std::int64_t* values;
  const std::int64_t* offsets;  ///< nullptr: one id a row
  std::size_t table;
  std::int64_t first, width;    ///< columns [first, first + width) of the output
  [[nodiscard]] std::int64_t begin(std::int64_t t) const { return offsets == nullptr ? t : offsets[t]; }
  [[nodiscard]] std::int64_t end(std::int64_t t) const { return offsets == nullptr ? t + 1 : offsets[t + 1]; }
};

struct BagPlan : torch::CustomClassHolder {
  std::vector<FeatureTensor> features;  ///< keeps the pointers of `columns` alive
  std::vector<Column> columns;
  std::int64_t num_rows = 0, width = 0;
};

c10::intrusive_ptr<BagPlan> make_plan(const std::vector<Tensor>& tables, const std::vector<std::size_t>& table_of_feature,
                                      const std::vector<FeatureTensor>& features, std::int64_t num_rows) {
  auto plan = c10::make_intrusive<BagPlan>();
  plan->num_rows = num_rows;
  for (std::size_t f = 0; f < features.size(); ++f) {
    const auto& table = tables[table_of_feature[f]];
    const FeatureTensor feature{.values = features[f].values.cpu().contiguous(),
                                .offsets = features[f].offsets.defined() ? features[f].offsets.cpu().contiguous() : Tensor()};
    const auto num_values = feature.values.size(0);
    const auto* values = feature.values.const_data_ptr<std::int64_t>();
    const std::int64_t* offsets = nullptr;
    if (feature.offsets.defined()) {
      offsets = feature.offsets.const_data_ptr<std::int64_t>();
      UQA_CHECK(feature.offsets.size(0) == num_rows + 1 && offsets[0] == 0 && offsets[num_rows] == num_values &&
                    std::is_sorted(offsets, offsets + num_rows + 1),
                ErrorCode::kData, "feature {}: its bag offsets must rise from 0 to {} in {} entries", f, num_values, num_rows + 1);
    } else {
      UQA_CHECK(num_values == num_rows, ErrorCode::kData, "feature {}: {} ids for {} interactions, one each is required", f, num_values, num_rows);
    }
    for (std::int64_t i = 0; i < num_values; ++i) {
      UQA_CHECK(values[i] >= 0 && values[i] < table.size(0), ErrorCode::kData, "feature {}: id = {}, must be in [0, {}); import the data with its own schema",
                f, values[i], table.size(0));
    }
    plan->columns.push_back({.values = values, .offsets = offsets, .table = table_of_feature[f], .first = plan->width, .width = table.size(1)});
    plan->width += table.size(1);
    plan->features.push_back(feature);
  }
  return plan;
}

template <typename T>
void gather(const BagPlan& plan, const std::vector<Tensor>& tables, T* out) {
  const auto grain = std::max<std::int64_t>(1, 4096 / std::max<std::int64_t>(1, plan.width));
  at::parallel_for(0, plan.num_rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      for (const auto& column : plan.columns) {
        T* cell = out + t * plan.width + column.first;
        std::fill(cell, cell + column.width, T{0});
        const auto first = column.begin(t), last = column.end(t);
        const T* table = tables[column.table].const_data_ptr<T>();
        for (auto i = first; i < last; ++i) {
          const T* row = table + column.values[i] * column.width;
          for (std::int64_t d = 0; d < column.width; ++d) cell[d] += row[d];
        }
        if (last - first > 1) {
          const T share = T{1} / static_cast<T>(last - first);
          for (std::int64_t d = 0; d < column.width; ++d) cell[d] *= share;
        }
      }
    }
  });
}

/// Every worker passes over all ids and adds those whose table row is its own: no locks, and a fixed order of sums.
template <typename T>
void scatter(const BagPlan& plan, const T* grad, const std::vector<Tensor>& dtables) {
  const std::int64_t num_workers = at::get_num_threads();
  at::parallel_for(0, num_workers, 1, [&](std::int64_t first_worker, std::int64_t last_worker) {
    for (const auto& column : plan.columns) {
      if (!dtables[column.table].defined()) continue;
      T* table = dtables[column.table].template mutable_data_ptr<T>();
      for (std::int64_t t = 0; t < plan.num_rows; ++t) {
        const auto first = column.begin(t), last = column.end(t);
        const T* cell = grad + t * plan.width + column.first;
        const T share = T{1} / static_cast<T>(std::max<std::int64_t>(1, last - first));
        for (auto i = first; i < last; ++i) {
          const auto worker = column.values[i] % num_workers;
          if (worker < first_worker || worker >= last_worker) continue;
          T* row = table + column.values[i] * column.width;
          for (std::int64_t d = 0; d < column.width; ++d) row[d] += share * cell[d];
        }
      }
    }
  });
}

struct FeatureBags : torch::autograd::Function<FeatureBags> {
  // A TensorList, not a vector: only that is searched for tensors that need gradients.
  static Tensor forward(torch::autograd::AutogradContext* ctx, const at::TensorList& list, const c10::intrusive_ptr<BagPlan>& plan) {
    const auto tables = list.vec();
    auto out_TC = at::empty({plan->num_rows, plan->width}, tables.front().options());
    AT_DISPATCH_FLOATING_TYPES(out_TC.scalar_type(), "feature_bags", [&] { gather<scalar_t>(*plan, tables, out_TC.mutable_data_ptr<scalar_t>()); });
    ctx->save_for_backward(tables);
    ctx->saved_data["plan"] = c10::IValue::make_capsule(plan);
    return out_TC;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grad) {
    const auto tables = ctx->get_saved_variables();
    const auto plan = c10::static_intrusive_pointer_cast<BagPlan>(ctx->saved_data["plan"].toCapsule());
    std::vector<Tensor> dtables(tables.size());
    for (std::size_t i = 0; i < tables.size(); ++i) {
      if (ctx->needs_input_grad(i)) dtables[i] = at::zeros(tables[i].sizes(), tables[i].options());
    }
    const auto grad_TC = grad[0].to(tables.front().scalar_type()).contiguous();
    AT_DISPATCH_FLOATING_TYPES(grad_TC.scalar_type(), "feature_bags_backward",
                               [&] { scatter<scalar_t>(*plan, grad_TC.const_data_ptr<scalar_t>(), dtables); });
    dtables.emplace_back();  // no gradient of the plan
    return dtables;
  }
};

}  // namespace

Tensor feature_bags(const std::vector<Tensor>& tables, const std::vector<std::size_t>& table_of_feature, const std::vector<FeatureTensor>& features,
                    std::int64_t num_rows) {
  UQA_CHECK(!features.empty() && table_of_feature.size() == features.size(), ErrorCode::kData, "{} features in the batch, the model has {}", features.size(),
            table_of_feature.size());
  for (const auto& table : tables) {
    UQA_CHECK(table.dim() == 2 && table.is_contiguous(), ErrorCode::kInternal, "feature tables must be contiguous [rows, dim]");
  }
  const auto plan = make_plan(tables, table_of_feature, features, num_rows);
  if (!tables.front().is_cpu()) return plain::feature_bags(tables, table_of_feature, features, num_rows);
  return FeatureBags::apply(at::TensorList(tables), plan);
}

}  // namespace uqa::models
