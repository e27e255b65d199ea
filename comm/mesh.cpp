#include "comm/communicator.h"

namespace uqa::comm {

namespace {

// Every rank has the same world size and options, so every rank refuses alike.
void check_factors(const Communicator& world, int dp, int tp) {
  const int size = world.size();
  const auto refuse = [size](const std::string& text) { throw AgreedError(ErrorCode::kConfig, text, size); };
  if (tp < 1 || dp < 0)
    refuse(fmt::format(
        "parallel.dp = {}, parallel.tp = {}, must be dp >= 0 (0: world size / tp) and tp >= 1; change them", dp, tp));
  if (dp == 0) {
    if (size % tp != 0) {
      refuse(
          fmt::format("world size = {}, must be divisible by parallel.tp = {} (parallel.dp = 0: world size / tp); "
                      "change the number of ranks "
                      "or --parallel.tp",
                      size, tp));
    }
    return;
  }
  if (std::int64_t{dp} * tp != size) {
    refuse(
        fmt::format("parallel.dp = {} * parallel.tp = {} is {}, must be the world size {}; change the number of ranks, "
                    "--parallel.dp or "
                    "--parallel.tp",
                    dp, tp, std::int64_t{dp} * tp, size));
  }
}

}  // namespace

Mesh::Mesh(const Communicator& world, int dp, int tp) : world_(world) {
  check_factors(world, dp, tp);
  dp_ = world.split(world.rank() % tp, world.rank(), "dp");
  tp_ = world.split(world.rank() / tp, world.rank(), "tp");
}

}  // namespace uqa::comm
