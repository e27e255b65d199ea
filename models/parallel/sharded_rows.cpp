#include "models/parallel/sharded_rows.h"

#include <algorithm>

#include "core/error.h"
#include "models/parallel/layout.h"

namespace uqa::models {
namespace {

/// What travels for one table, in both directions.
struct Exchange {
  std::int64_t num_ids = 0;
  SliceRange share;                   ///< of the ids: fetched by this tp peer, the others by its peers
  std::vector<std::int64_t> asked;    ///< of the share, per owner
  std::vector<std::int64_t> granted;  ///< rows that each rank asked this one for
  Tensor rows_G;                      ///< int64: which rows of this rank's part, by asking rank
};

struct Plan : torch::CustomClassHolder {
  TableSharding sharding;
  std::vector<Exchange> exchanges;
};

/// How many of the ascending ids (on the CPU) each owner holds.
std::vector<std::int64_t> count_by_owner(const Tensor& ids, std::int64_t num_rows, int num_ranks) {
  std::vector<std::int64_t> counts;
  const auto* const begin = ids.const_data_ptr<std::int64_t>();
  const auto* const end = begin + ids.numel();
  const auto* at = begin;
  for (int r = 0; r < num_ranks; ++r) {
    const auto range = even_range(num_rows, r, num_ranks);
    const auto* const next = std::lower_bound(at, end, range.begin + range.length);
    counts.push_back(next - at);
    at = next;
  }
  return counts;
}

/// Row r is the sum of add[i] where rows[i] = r, in this order; of the table's shape.
Tensor summed_rows(const Tensor& table_VD, const Tensor& rows_G, const Tensor& add_GD) {
  // In a fixed order too, as index_add_ on a GPU is not.
  if (!table_VD.is_cpu()) return at::embedding_dense_backward(add_GD, rows_G, table_VD.size(0), /*padding_idx=*/-1, /*scale_grad_by_freq=*/false);
  const auto sums_VD = at::zeros(table_VD.sizes(), table_VD.options().requires_grad(false));
  const auto width = table_VD.size(1);
  auto* const table = sums_VD.mutable_data_ptr<float>();
  const auto* const rows = rows_G.const_data_ptr<std::int64_t>();
  const auto* const add = add_GD.const_data_ptr<float>();
  for (std::int64_t i = 0; i < rows_G.numel(); ++i) {
    float* const row = table + rows[i] * width;
    for (std::int64_t d = 0; d < width; ++d) row[d] += add[i * width + d];
  }
  return sums_VD;
}

struct ShardedRows : torch::autograd::Function<ShardedRows> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const at::TensorList& list, const std::vector<RowRequest>& requests,
                                                const TableSharding& sharding) {
    const auto plan = c10::make_intrusive<Plan>();
    plan->sharding = sharding;
    torch::autograd::variable_list results;
    for (std::size_t i = 0; i < list.size(); ++i) {
      const auto& table_VD = list[i];
      const auto ids_U = requests[i].ids_U.cpu().contiguous();  // ids travel between hosts, rows between devices
      Exchange exchange{.num_ids = ids_U.numel(), .share = even_range(ids_U.numel(), sharding.tp.rank(), sharding.tp.size()), .asked = {}, .granted = {}, .rows_G = {}};
      const auto share = ids_U.narrow(0, exchange.share.begin, exchange.share.length);
      exchange.asked = count_by_owner(share, requests[i].num_rows, sharding.table.size());
      auto [wanted_G, granted] = comm::all_to_all(share, exchange.asked, sharding.table);
      exchange.granted = std::move(granted);
      exchange.rows_G = wanted_G.sub_(even_range(requests[i].num_rows, sharding.table.rank(), sharding.table.size()).begin).to(table_VD.device());
      // Owners ascend with the ids, so what comes back is in the order of the share.
      const auto [fetched, counts] = comm::all_to_all(table_VD.index_select(0, exchange.rows_G), exchange.granted, sharding.table);
      results.push_back(sharding.tp.size() == 1 ? fetched : comm::all_gather(fetched, sharding.tp));
      plan->exchanges.push_back(std::move(exchange));
    }
    ctx->save_for_backward(list.vec());
    ctx->saved_data["plan"] = c10::IValue::make_capsule(plan);
    return results;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grads) {
    const auto tables = ctx->get_saved_variables();
    const auto plan = c10::static_intrusive_pointer_cast<Plan>(ctx->saved_data["plan"].toCapsule());
    torch::autograd::variable_list dtables(tables.size());
    for (std::size_t i = 0; i < tables.size(); ++i) {
      const auto& exchange = plan->exchanges[i];
      const auto& table_VD = tables[i];
      const auto grad_UD = grads[i].defined() ? grads[i].to(at::kFloat) : at::zeros({exchange.num_ids, table_VD.size(1)}, table_VD.options());
      const auto [add_GD, counts] = comm::all_to_all(grad_UD.narrow(0, exchange.share.begin, exchange.share.length), exchange.asked, plan->sharding.table);
      if (!ctx->needs_input_grad(i)) continue;
      dtables[i] = summed_rows(table_VD, exchange.rows_G, add_GD.contiguous());
    }
    dtables.resize(tables.size() + 2);  // no gradients of requests and sharding
    return dtables;
  }
};

}  // namespace

std::vector<Tensor> sharded_rows(const std::vector<Tensor>& tables, const std::vector<RowRequest>& requests, const TableSharding& sharding) {
  UQA_CHECK(tables.size() == requests.size(), ErrorCode::kInternal, "{} tables and {} requests", tables.size(), requests.size());
  for (std::size_t i = 0; i < tables.size(); ++i) {
    const auto& ids = requests[i].ids_U;
    UQA_CHECK(tables[i].scalar_type() == at::kFloat && tables[i].dim() == 2 && tables[i].is_contiguous() && ids.dim() == 1 && ids.scalar_type() == at::kLong,
              ErrorCode::kInternal, "sharded table {}: must be contiguous float32 [rows, dim], asked for with int64 ids", i);
    if (ids.numel() == 0) continue;
    const auto lowest = ids[0].item<std::int64_t>(), highest = ids[-1].item<std::int64_t>();
    UQA_CHECK(lowest >= 0 && highest < requests[i].num_rows, ErrorCode::kData, "sharded table {}: ids from {} to {}, must be in [0, {}); import the data with its own schema",
              i, lowest, highest, requests[i].num_rows);
  }
  if (tables.empty()) return {};
  return ShardedRows::apply(at::TensorList(tables), requests, sharding);
}

}  // namespace uqa::models
