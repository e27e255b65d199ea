#include "launch/stage.h"

#include <optional>

namespace uqa::launch {

Stage open_stage(comm::Session& session, const StageRequest& request) {
  const auto& world = session.world();
  const auto& parallel = request.loop.parallel;
  comm::Mesh mesh(world, static_cast<int>(parallel.dp), static_cast<int>(parallel.tp_axis()), static_cast<int>(parallel.table_group));
  // Rank 0 makes the directory before the others look at it.
  std::optional<trainer::RunDirectory> run;
  const auto open = [&](bool overwrite) {
    run.emplace(request.run, request.stage, request.ini, overwrite, world.rank() == 0);
  };
  comm::run_agreed(world, [&] {
    if (world.rank() == 0) open(request.call.overwrite);
  });
  comm::run_agreed(world, [&] {
    if (world.rank() != 0) open(false);
  });
  session.configure_watchdog({.timeout_s = request.call.timeout_s, .heartbeat_dir = (run->path() / "heartbeats").string()});
  return {std::move(mesh), std::move(*run)};
}

}  // namespace uqa::launch
