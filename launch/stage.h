// launch/stage.h - what every training stage needs before it starts: mesh, run directory, watchdog.
#pragma once

#include <string>

#include "comm/communicator.h"
#include "launch/bind.h"
#include "trainer/run_directory.h"

namespace uqa::launch {

struct StageRequest {
  std::string stage;                  ///< "pretrain" or "align"
  std::string run;                    ///< run directory
  const trainer::LoopConfig& loop;
  const CallSettings& call;
  std::string ini;                    ///< resolved configuration, stored in the run directory
};

struct Stage {
  comm::Mesh mesh;
  trainer::RunDirectory run;
};

/// Collective. Refusals are agreed: every rank throws the same error before any work starts.
[[nodiscard]] Stage open_stage(comm::Session& session, const StageRequest& request);

}  // namespace uqa::launch
