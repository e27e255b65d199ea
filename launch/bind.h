// launch/bind.h - binds the shared settings to their dotted options: the one place where a field gets its name and help.
#pragma once

#include "launch/options.h"
#include "trainer/config.h"
#include "trainer/pretrain.h"

namespace uqa::launch {

void bind(OptionSet& options, trainer::LoopConfig& config);
void bind(OptionSet& options, trainer::UserModelSettings& settings);

/// Settings about this one call, common to every command that computes.
struct CallSettings {
  bool overwrite = false;           ///< replace an output directory that holds something else
  std::string log_level = "info";   ///< debug, info, warn, error
  bool log_all_ranks = false;       ///< info lines from every rank
  double timeout_s = 600;           ///< comm.timeout_s
};
void bind(OptionSet& options, CallSettings& call);
/// Applies log settings. Error(kConfig) for an unknown level.
void apply(const CallSettings& call);

/// Threads of this rank: `requested`, or the host's cores over the ranks on it. Warns when fewer cores than threads are bound.
void set_num_threads(std::int64_t requested, int ranks_on_host);

}  // namespace uqa::launch
