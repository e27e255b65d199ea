// Ranks that misbehave on purpose: comm_fault_program MODE PID_DIR. Each rank leaves its process id in PID_DIR, so that
// the caller can look for processes that outlive the job.
#include <csignal>
#include <fstream>
#include <string>

#include <unistd.h>

#include "comm/communicator.h"

namespace {

using uqa::ErrorCode;
namespace comm = uqa::comm;

void run(const std::string& mode, comm::Session& session) {
  const comm::Communicator& world = session.world();
  const int last = world.size() - 1;
  at::Tensor x = at::ones({1 << 20});
  comm::all_reduce_(x, comm::ReduceOp::kSum, world);
  if (mode == "ok") return;
  if (mode == "kill") {  // dies in the middle of a stream of collectives
    for (int step = 0;; ++step) {
      if (step == 20 && world.rank() == last) ::raise(SIGKILL);
      comm::all_reduce_(x, comm::ReduceOp::kMax, world);
    }
  }
  if (mode == "stop" || mode == "stop_async" || mode == "stop_gather") {  // lives on but never calls again
    session.configure_watchdog({.timeout_s = 2, .heartbeat_dir = ""});
    comm::barrier(world);
    if (world.rank() == last) {
      for (;;) ::pause();
    }
    if (mode == "stop") comm::all_reduce_(x, comm::ReduceOp::kSum, world);
    if (mode == "stop_gather") comm::all_gather_async(x, std::vector<std::int64_t>(static_cast<std::size_t>(world.size()), x.size(0)), world).second.wait();
    comm::all_reduce_async_(x, comm::ReduceOp::kSum, world).wait();
  }
  if (mode == "mesh") {
    const comm::Mesh mesh(world, 3, 5);
  } else if (mode == "agreed") {
    comm::run_agreed(world, [&] {
      UQA_CHECK(world.rank() != last, ErrorCode::kData, "shard = broken, must be whole; import again");
    });
  } else if (mode == "alone") {
    UQA_CHECK(world.rank() != last, ErrorCode::kNumeric, "loss = nan, must be finite; lower optim.peak_lr");
    comm::barrier(world);
  } else if (mode == "torch") {
    if (world.rank() == last) static_cast<void>(x.view({3}));
    comm::barrier(world);
  } else if (mode == "part") {  // agreed by one half of the ranks only
    const auto half = world.split(world.rank() % 2, world.rank(), "half");
    if (world.rank() % 2 == 1) comm::agree_or_throw(half, false, ErrorCode::kData, "half of the ranks");
    comm::barrier(world);
  } else if (mode == "pending") {  // an error while a started collective cannot end
    if (world.rank() == last) {
      at::Tensor y = at::ones({1 << 20});
      const auto work = comm::all_reduce_async_(y, comm::ReduceOp::kSum, world);
      UQA_FAIL(ErrorCode::kNumeric, "loss = nan, must be finite; lower optim.peak_lr");
    }
    comm::barrier(world);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 70;
  const std::string mode = argv[1], pid_dir = argv[2];
  std::ofstream(pid_dir + "/" + std::to_string(::getpid())) << ::getpid() << '\n';
  comm::Session session(&argc, &argv, {.timeout_s = 30, .heartbeat_dir = ""});
  try {
    run(mode, session);
    session.finish();
    return 0;
  } catch (const std::exception& error) {
    return session.fail(error);
  }
}
