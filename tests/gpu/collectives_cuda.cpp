// Run by tests/gpu/run.sh, one rank per device: every collective on CUDA tensors gives what MPI gives for the same numbers on the CPU.
// Usage: mpirun -np N collectives_cuda PLUGIN
#include <cstdio>

#include "comm/communicator.h"
#include "comm/device.h"

namespace {

using namespace uqa;
using at::Tensor;
using comm::ReduceOp;

int checks = 0, failures = 0;

void expect_equal(const Tensor& on_device, const Tensor& on_host, const std::string& what) {
  ++checks;
  if (on_device.scalar_type() == on_host.scalar_type() && on_device.sizes() == on_host.sizes() && at::equal(on_device.cpu(), on_host)) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

/// Whole numbers that every type holds exactly, so that the order of a sum does not matter.
Tensor numbers(std::int64_t rows, at::ScalarType dtype, int rank) { return ((at::arange(rows * 3, at::kLong).remainder(13) - 6) * (rank + 1)).to(dtype).view({rows, 3}); }

void check_all(const comm::Communicator& comm, const at::Device& device) {
  const int n = comm.size(), me = comm.rank();
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kLong}) {
    for (const std::int64_t rows : {1, 7, 1000, 70'001}) {
      const auto name = [&](const char* op) { return fmt::format("{} {} [{}, 3] on axis '{}', rank {}", op, at::toString(dtype), rows, comm.axis(), me); };
      const Tensor host = numbers(rows, dtype, me), here = host.to(device);
      for (const auto op : {ReduceOp::kSum, ReduceOp::kMax, ReduceOp::kMin}) {
        expect_equal(comm::all_reduce(here, op, comm), comm::all_reduce(host, op, comm), name("all_reduce"));
        Tensor a = here.clone(), b = host.clone();
        auto work_a = comm::all_reduce_async_(a, op, comm), work_b = comm::all_reduce_async_(b, op, comm);
        work_a.wait();
        work_b.wait();
        expect_equal(a, b, name("all_reduce_async_"));
      }
      expect_equal(comm::all_gather(here, comm), comm::all_gather(host, comm), name("all_gather"));
      const auto uneven = (me * 5 + rows) % 4;  // also none
      expect_equal(comm::all_gather(here.narrow(0, 0, std::min(rows, uneven)), comm), comm::all_gather(host.narrow(0, 0, std::min(rows, uneven)), comm), name("uneven all_gather"));
      std::vector<std::int64_t> uneven_rows;
      for (int r = 0; r < n; ++r) uneven_rows.push_back(std::min<std::int64_t>(rows, (r * 5 + rows) % 4));
      auto first = comm::all_gather_async(here, std::vector<std::int64_t>(static_cast<std::size_t>(n), rows), comm);
      auto second = comm::all_gather_async(here.narrow(0, 0, uneven_rows[static_cast<std::size_t>(me)]), uneven_rows, comm);
      first.second.wait();
      second.second.wait();
      expect_equal(first.first, comm::all_gather(host, comm), name("all_gather_async"));
      expect_equal(second.first, comm::all_gather(host.narrow(0, 0, uneven_rows[static_cast<std::size_t>(me)]), comm), name("uneven all_gather_async"));
      std::vector<std::int64_t> even(static_cast<std::size_t>(n), rows), one(static_cast<std::size_t>(n), 0);
      const Tensor host_n = numbers(rows * n, dtype, me), here_n = host_n.to(device);
      one.back() = rows * n;
      for (const auto& counts : {even, one}) {
        expect_equal(comm::reduce_scatter(here_n, counts, comm), comm::reduce_scatter(host_n, counts, comm), name("reduce_scatter"));
        expect_equal(comm::all_to_all(here_n, counts, comm).first, comm::all_to_all(host_n, counts, comm).first, name("all_to_all"));
      }
      for (int root = 0; root < n; ++root) {
        Tensor a = here.clone(), b = host.clone();
        comm::broadcast_(a, root, comm);
        comm::broadcast_(b, root, comm);
        expect_equal(a, b, name("broadcast_"));
      }
    }
  }
  if (n > 1) {
    comm.backend().on_device()->barrier();
    ++checks;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const auto library = comm::load_device_library(argc > 1 ? argv[1] : "");
  comm::Session session(&argc, &argv, {.timeout_s = 60, .heartbeat_dir = ""});
  try {
    comm::use_device(session.world(), library);
    const auto& world = session.world();
    check_all(world, session.world().backend().device());
    const auto half = world.split(world.rank() % 2, world.rank(), "half");
    check_all(half, session.world().backend().device());
    const auto failed = comm::all_reduce(std::int64_t{failures}, ReduceOp::kSum, world);
    if (world.rank() == 0) std::printf("%d checks a rank on %d ranks, %lld failed\n", checks, world.size(), static_cast<long long>(failed));
    session.finish();
    return failed == 0 ? 0 : 1;
  } catch (const std::exception& error) {
    return session.fail(error);
  }
}
