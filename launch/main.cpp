// launch/main.cpp - the `uqa` program: picks the subcommand, and is the only place that ends the process.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "comm/communicator.h"
#include "comm/device.h"
#include "core/error.h"
#include "core/signals.h"
#include "core/text.h"
#include "launch/command.h"
#include "launch/device.h"

/// Read by jemalloc before main: keep freed pages, since every step asks for the same large buffers again.
extern "C" const char* malloc_conf;
const char* malloc_conf = "oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1";

namespace {

using namespace uqa;

std::string usage() {
  std::string text =
      "uqa - pre-train user encoders, align them to an LLM, and measure how well a user embedding replaces the history\n\n"
      "Usage: uqa COMMAND [options]          uqa COMMAND --help          mpirun -np N uqa COMMAND [options]\n\nCommands:\n";
  for (const auto& entry : launch::commands()) text += fmt::format("  {:<17} {}\n", entry.name, entry.summary);
  text += "\nExit codes: 0 done, 2 configuration, 3 data, 4 communication, 5 numeric, 70 internal, 75 saved on request (run again).\n";
  return text;
}

const launch::CommandEntry& find_command(const std::string& name) {
  std::vector<std::string> names;
  for (const auto& entry : launch::commands()) {
    if (name == entry.name) return entry;
    names.emplace_back(entry.name);
  }
  UQA_FAIL(ErrorCode::kConfig, "unknown command '{}'{}; see uqa --help", name, suggestion(name, names));
}

/// For errors met before the ranks are: each rank meets the same one, the first of them prints it.
int report(const std::exception& error) {
  bool first = true;
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"}) {
    if (const char* rank = std::getenv(name); rank != nullptr) {
      first = std::string_view(rank) == "0";
      break;
    }
  }
  if (first) std::fprintf(stderr, "uqa: %s\n", error.what());
  const auto* known = dynamic_cast<const Error*>(&error);
  return static_cast<int>(known != nullptr ? known->code() : ErrorCode::kInternal);
}

int run_single(launch::Command& command, const std::vector<std::string>& words) {
  try {
    if (!command.parse(words)) {
      std::fputs(command.options().help().c_str(), stdout);
      return 0;
    }
    command.run(nullptr);
    return 0;
  } catch (const std::exception& error) {
    return report(error);
  }
}

/// Parsing is the same on every rank, so its errors are agreed without talking.
int run_ranks(launch::Command& command, const std::vector<std::string>& words, comm::Session& session, const comm::DeviceLibrary& library) {
  try {
    comm::run_agreed(session.world(), [&] {
      if (!command.parse(words)) UQA_FAIL(ErrorCode::kInternal, "--help is handled before the ranks meet");
      launch::check_device(command.device());
    });
    if (command.device() == "cuda") comm::use_device(session.world(), library);
    command.run(&session);
    session.finish();
    return 0;
  } catch (const std::exception& error) {
    return session.fail(error);
  }
}

bool asks_for_help(const std::vector<std::string>& words) {
  for (const auto& word : words) {
    if (word == "--help" || word == "-h") return true;
  }
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  // oneDNN keeps compiled kernels of 1,024 shapes by default, and packed batches bring new shapes every step: alignment grew by
  // gigabytes a rank. The user's own setting stands.
  ::setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128", /*overwrite=*/0);
  std::vector<std::string> words(argv + 1, argv + argc);
  if (words.empty() || words.front() == "--help" || words.front() == "-h" || words.front() == "help") {
    std::fputs(usage().c_str(), words.empty() ? stderr : stdout);
    return words.empty() ? static_cast<int>(ErrorCode::kConfig) : 0;
  }
  std::unique_ptr<launch::Command> command;
  const launch::CommandEntry* entry = nullptr;
  try {
    entry = &find_command(words.front());
    command = entry->make();
  } catch (const std::exception& error) {
    return report(error);
  }
  words.erase(words.begin());
  if (command->ranks() == launch::Ranks::kSingle || asks_for_help(words)) return run_single(*command, words);

  // Before LibTorch is asked anything about devices. On failure the reason is kept until all ranks can refuse together.
  comm::DeviceLibrary library;
  if (launch::asked_device(*entry, words) == "cuda") library = comm::load_device_library(launch::nccl_plugin_path());

  if (command->saves_on_signal()) install_stop_handlers();
  try {
    comm::Session session(&argc, &argv);  // outlives the command: an error must never reach MPI's finalization by itself
    return run_ranks(*command, words, session, library);
  } catch (const std::exception& error) {  // the launcher itself is the trouble
    return report(error);
  }
}
