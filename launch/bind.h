// launch/bind.h - binds the shared settings to their dotted options: the one place where a field gets its name and help.
#pragma once

#include "launch/options.h"
#include "trainer/config.h"
#include "trainer/pretrain.h"

namespace uqa::launch {

void bind(OptionSet& options, trainer::LoopConfig& config);
void bind(OptionSet& options, trainer::ParallelConfig& parallel);
/// Those of them that make the mesh.
void bind_mesh(OptionSet& options, trainer::ParallelConfig& parallel);
void bind(OptionSet& options, trainer::UserModelSettings& settings);

/// Settings about this one call, common to every command that computes.
struct CallSettings {
  bool overwrite = false;           ///< replace an output directory that holds something else
  std::string log_level = "info";   ///< debug, info, warn, error
  bool log_all_ranks = false;       ///< info lines from every rank
  double timeout_s = 600;           ///< comm.timeout_s
};
void bind(OptionSet& options, CallSettings& call);
/// --device of a command that computes; not part of what config.ini keeps, so that a run goes on where there is no such device.
void bind_device(OptionSet& options, std::string& device);
/// Applies log settings. Error(kConfig) for an unknown level.
void apply(const CallSettings& call);

}  // namespace uqa::launch
