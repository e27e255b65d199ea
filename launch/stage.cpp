#include "launch/stage.h"

#include <cstdlib>
#include <optional>

#include "core/text.h"

namespace uqa::launch {

int ranks_on_host() {
  for (const char* name : {"OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"}) {
    if (const char* text = std::getenv(name); text != nullptr) {
      if (const auto n = parse_int(text); n && *n > 0) return static_cast<int>(*n);
    }
  }
  return 1;
}

Stage open_stage(comm::Session& session, const StageRequest& request) {
  const auto& world = session.world();
  set_num_threads(request.loop.train.num_threads, ranks_on_host());
  comm::Mesh mesh(world, static_cast<int>(request.loop.parallel.dp), static_cast<int>(request.loop.parallel.tp));
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
