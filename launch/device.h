// launch/device.h - what `--device` needs before anything else runs.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "launch/command.h"

namespace uqa::launch {

/// Where the NCCL plug-in belongs: beside the program.
[[nodiscard]] std::filesystem::path nccl_plugin_path();

/// The device that a call with these words would ask for. "cpu" for words that cannot be parsed: that error is told later, by all ranks alike.
[[nodiscard]] std::string asked_device(const CommandEntry& entry, const std::vector<std::string>& words);

/// Error(kConfig) unless it is cpu or cuda.
void check_device(const std::string& device);

}  // namespace uqa::launch
