// models/parallel/sharded_rows.h - rows of tables that are cut by rows over the ranks of a table group: only rows that a batch needs travel.
//
//   const auto rows = sharded_rows(tables, requests, sharding);   // rows[i] [U_i, D_i]: a small table of what the batch uses
#pragma once

#include <cstdint>
#include <vector>

#include "comm/communicator.h"
#include "models/packed.h"

namespace uqa::models {

/// How tables are cut among ranks. The default: not at all.
struct TableSharding {
  comm::Communicator table = {};  ///< the ranks that hold each cut table once, rank r the rows even_range(rows, r, size); of one: all are whole
  comm::Communicator tp = {};     ///< the ranks of `table` that see the same batches
  std::int64_t min_rows = 4096;   ///< tables with fewer rows are whole on every rank
  [[nodiscard]] bool cuts(std::int64_t rows) const { return table.size() > 1 && rows >= min_rows; }
};

/// What a batch needs of one table.
struct RowRequest {
  Tensor ids_U;               ///< int64, strictly ascending, in [0, num_rows); equal on tp peers; may be empty; on any device, best on the CPU
  std::int64_t num_rows = 0;  ///< of the whole table
};

/// Row ids_U[u] of table i at position u, float32; differentiable in `tables` (this rank's rows): gradients of all ranks' requests are added
/// up by the rows' owners, those of tp peers (which are equal) once.
/// Shapes: tables[i] [V_i of this rank, D_i] -> [U_i, D_i]. Collective over sharding.table and sharding.tp, in backward too: every rank
/// must run it, with empty requests if it has nothing to ask for. A request is split over tp, so each row travels to a tp group once.
[[nodiscard]] std::vector<Tensor> sharded_rows(const std::vector<Tensor>& tables, const std::vector<RowRequest>& requests, const TableSharding& sharding);

}  // namespace uqa::models
