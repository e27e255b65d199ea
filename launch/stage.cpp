#include "launch/stage.h"

namespace uqa::launch {

Stage open_stage(comm::Session& session, const StageRequest& request) {
  const auto& world = session.world();
  const auto& parallel = request.loop.parallel;
  comm::Mesh mesh(world, static_cast<int>(parallel.dp), static_cast<int>(parallel.tp_axis()), static_cast<int>(parallel.table_group));
  auto run = trainer::open_run_directory(request.run, request.stage, request.ini, request.call.overwrite, world);
  session.configure_watchdog({.timeout_s = request.call.timeout_s, .heartbeat_dir = (run.path() / "heartbeats").string()});
  return {std::move(mesh), std::move(run)};
}

}  // namespace uqa::launch
