#include <algorithm>

#include "comm/communicator.h"

namespace uqa::comm {

namespace {

constexpr int kLargestTableGroup = 64;  // of those that are chosen here: gathering hiddens grows with the group

// Every rank has the same world size and options, so every rank refuses alike.
void check_factors(const Communicator& world, int dp, int tp, int table_group) {
  const int size = world.size();
  const auto refuse = [size](const std::string& text) { throw AgreedError(ErrorCode::kConfig, text, size); };
  if (tp < 1 || dp < 0)
    refuse(fmt::format(
        "parallel.dp = {}, parallel.tp = {}, must be dp >= 0 (0: world size / tp) and tp >= 1; change them", dp, tp));
  if (dp == 0 && size % tp != 0) {
    refuse(
        fmt::format("world size = {}, must be divisible by parallel.tp = {} (parallel.dp = 0: world size / tp); "
                    "change the number of ranks "
                    "or --parallel.tp",
                    size, tp));
  }
  if (dp != 0 && std::int64_t{dp} * tp != size) {
    refuse(
        fmt::format("parallel.dp = {} * parallel.tp = {} is {}, must be the world size {}; change the number of ranks, "
                    "--parallel.dp or "
                    "--parallel.tp",
                    dp, tp, std::int64_t{dp} * tp, size));
  }
  if (table_group < 0 || (table_group > 0 && (size % table_group != 0 || table_group % tp != 0))) {
    refuse(
        fmt::format("parallel.table_group = {}, must divide the world size {} and be a multiple of parallel.tp = {} "
                    "(0: the world, at most {} ranks); change --parallel.table_group or the number of ranks",
                    table_group, size, tp, kLargestTableGroup));
  }
}

/// The largest group of at most kLargestTableGroup ranks that divides the world and holds whole tp groups.
int choose_table_group(int world_size, int tp) {
  for (int group = std::min(world_size, kLargestTableGroup); group > tp; --group) {
    if (world_size % group == 0 && group % tp == 0) return group;
  }
  return tp;
}

}  // namespace

Mesh::Mesh(const Communicator& world, int dp, int tp, int table_group) : world_(world) {
  check_factors(world, dp, tp, table_group);
  if (table_group == 0) table_group = choose_table_group(world.size(), tp);
  dp_ = world.split(world.rank() % tp, world.rank(), "dp");
  tp_ = world.split(world.rank() / tp, world.rank(), "tp");
  table_ = world.split(world.rank() / table_group, world.rank(), "table");
  table_replica_ = world.split(world.rank() % table_group, world.rank(), "table_replica");
}

std::int64_t Mesh::bytes_sent() const {
  return world_.bytes_sent() + dp_.bytes_sent() + tp_.bytes_sent() + table_.bytes_sent() + table_replica_.bytes_sent();
}

}  // namespace uqa::comm
