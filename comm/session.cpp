#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <random>

#include <unistd.h>

#include "comm/device.h"
#include "comm/mpi.h"
#include "core/log.h"

namespace uqa::comm {

namespace {

bool has_env(const char* name) { return std::getenv(name) != nullptr; }

long env_number(const char* name) {
  const char* const text = std::getenv(name);
  return text == nullptr ? 0 : std::strtol(text, nullptr, 10);
}

/// True when mpirun or a PMI of srun started this process.
bool has_launcher() { return has_env("OMPI_COMM_WORLD_SIZE") || has_env("PMIX_RANK") || has_env("PMI_RANK"); }

void refuse_lonely_tasks() {
  UQA_CHECK(env_number("SLURM_NTASKS") <= 1, ErrorCode::kConfig,
            "SLURM_NTASKS = {}, but nothing connects the tasks, so each would run alone and write the same files; "
            "start with `srun --mpi=pmix` or "
            "mpirun, or ask for one task",
            env_number("SLURM_NTASKS"));
}

/// A directory name that no other job uses; made by the ranks themselves.
std::string temporary_heartbeat_dir() {
  std::random_device random;
  return (std::filesystem::temp_directory_path() /
          fmt::format("uqa-heartbeat-{}-{:08x}{:08x}", ::getpid(), random(), random()))
      .string();
}

void print_line(const std::string& line) {
  // One write, so that lines of several ranks do not mix.
  const std::string text = line + "\n";
  static_cast<void>(std::fwrite(text.data(), 1, text.size(), stderr));
  std::fflush(stderr);
}

}  // namespace

struct Session::Impl {
  bool uses_mpi = false;
  bool over = false;  ///< finalized
  std::shared_ptr<Watchdog> watchdog;
  Communicator world;

  void share_heartbeats(const std::string& directory, PeerFiles files) {
    run_agreed(world, [&] { watchdog->create_heartbeat(directory); });  // also: every file is there
    watchdog->meet_peers(files);
    if (files == PeerFiles::kByName) return;
    barrier(world);
    watchdog->remove_heartbeat();
  }

  void finalize() {
    over = true;
    if (!uses_mpi) return;
    if (watchdog) watchdog->remove_heartbeat();
    const WatchedGroup::Scope scope(world.backend().watched(), "finalize");
    detail::mpi_finalize();
  }
};

Session::Session(int* argc, char*** argv, SessionOptions options) : impl_(std::make_unique<Impl>()) {
  if (!has_launcher()) {
    refuse_lonely_tasks();
    impl_->world = Communicator(detail::make_serial_backend("world"));
    return;
  }
  // A PMI that this MPI does not speak leaves every task a world of its own.
  const bool by_mpirun = has_env("OMPI_COMM_WORLD_SIZE");
  detail::mpi_init(argc, argv);
  impl_->uses_mpi = true;
  const int size = detail::mpi_size();
  if (size == 1 && !by_mpirun && env_number("SLURM_STEP_NUM_TASKS") > 1) refuse_lonely_tasks();
  log::set_rank(detail::mpi_rank(), size);
  if (size == 1) {
    impl_->world = Communicator(detail::make_serial_backend("world"));
    return;
  }
  impl_->watchdog = std::make_shared<Watchdog>(detail::mpi_rank(), size);
  impl_->watchdog->watch(options.timeout_s);
  impl_->world = Communicator(detail::make_mpi_backend(impl_->watchdog));
  if (!options.heartbeat_dir.empty()) {
    impl_->share_heartbeats(options.heartbeat_dir, PeerFiles::kByName);
  } else {
    impl_->share_heartbeats(broadcast_text(world().rank() == 0 ? temporary_heartbeat_dir() : "", 0, world()),
                            PeerFiles::kHeldOpen);
  }
}

Session::~Session() {
  // Leaving while an exception passes through means that other ranks may be elsewhere: no orderly end then.
  if (impl_->over || std::uncaught_exceptions() > 0) return;
  try {
    finish();
  } catch (const std::exception& error) {
    log::error("comm", "{}", error.what());
  }
}

const Communicator& Session::world() const { return impl_->world; }

void Session::configure_watchdog(const SessionOptions& options) {
  const Communicator& world = impl_->world;
  if (!impl_->watchdog) {
    if (!(options.timeout_s > 0)) {
      throw AgreedError(ErrorCode::kConfig,
                        fmt::format("comm.timeout_s = {}, must be > 0 seconds; change it", options.timeout_s),
                        world.size());
    }
    return;
  }
  run_agreed(world, [&] { impl_->watchdog->watch(options.timeout_s); });
  if (!options.heartbeat_dir.empty()) impl_->share_heartbeats(options.heartbeat_dir, PeerFiles::kByName);
}

void Session::finish() {
  if (impl_->over) return;
  barrier(impl_->world);
  if (const auto& plugin = impl_->world.backend().plugin()) {
    const WatchedGroup::Scope scope(impl_->world.backend().watched(), "close device groups");
    plugin->close();
  }
  impl_->finalize();
}

int Session::fail(const std::exception& error) noexcept {
  const auto* const ours = dynamic_cast<const Error*>(&error);
  const auto* const agreed = dynamic_cast<const AgreedError*>(&error);
  const int code = static_cast<int>(ours != nullptr ? ours->code() : ErrorCode::kInternal);
  const Communicator& world = impl_->world;
  // No orderly end of device groups: a peer may be in a collective that this rank will never join.
  if (const auto& plugin = world.backend().plugin()) plugin->abort();
  try {
    const std::string text = first_line(error.what());
    if (world.size() == 1 || (agreed != nullptr && agreed->num_ranks() == world.size())) {
      if (world.rank() == 0) print_line(fmt::format("uqa: {}", text));
      if (!impl_->over) impl_->finalize();
      return code;
    }
    print_line(fmt::format("uqa: rank {}: {}", world.rank(), text));
  } catch (const std::exception& second) {
    print_line(second.what());
  }
  if (impl_->uses_mpi && !impl_->over) detail::mpi_abort(code);
  return code;
}

}  // namespace uqa::comm
