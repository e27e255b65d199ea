#include "launch/device.h"

#include "comm/device.h"
#include "core/error.h"

namespace uqa::launch {

std::filesystem::path nccl_plugin_path() {
  std::error_code none;
  return std::filesystem::read_symlink("/proc/self/exe", none).parent_path() / comm::kNcclPlugin;
}

std::string asked_device(const CommandEntry& entry, const std::vector<std::string>& words) {
  try {
    const auto command = entry.make();  // parsed for real once the ranks have met
    return command->parse(words) ? command->device() : "cpu";
  } catch (const std::exception&) {
    return "cpu";
  }
}

void check_device(const std::string& device) {
  UQA_CHECK(device == "cpu" || device == "cuda", ErrorCode::kConfig, "--device = {}, must be cpu or cuda; change --device", device);
}

}  // namespace uqa::launch
