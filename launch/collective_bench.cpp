#include "launch/collective_bench.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "core/clock.h"
#include "core/text.h"

namespace uqa::launch {
namespace {

using at::Tensor;
/// The largest of the ranks' times, to the nanosecond.
double slowest(double seconds, const comm::Communicator& comm) {
  return 1e-9 * static_cast<double>(comm::all_reduce(static_cast<std::int64_t>(seconds * 1e9), comm::ReduceOp::kMax, comm));
}

const char* tensor_type_name(at::ScalarType dtype) { return dtype == at::kFloat ? "float32" : dtype == at::kBFloat16 ? "bf16" : "int64"; }

}  // namespace

Json CollectiveMeasure::to_json() const {
  return {{"bench", "collectives"}, {"op", op}, {"dtype", dtype}, {"bytes", bytes}, {"np", np}, {"seconds", seconds}, {"bus_bytes_per_s", bus_bytes_per_s}};
}

const std::vector<std::string>& collective_names() {
  static const std::vector<std::string> names{"all_reduce", "all_reduce_async", "all_gather", "reduce_scatter", "broadcast", "all_to_all", "barrier"};
  return names;
}

CollectiveMeasure measure_collective(const std::string& op, at::ScalarType dtype, std::int64_t bytes, const comm::Communicator& comm, int repetitions,
                                     const at::Device& device) {
  const std::int64_t n = comm.size();
  const std::int64_t width = static_cast<std::int64_t>(at::elementSize(dtype));
  const std::int64_t block = std::max<std::int64_t>(1, bytes / (width * n));  // rows of one rank
  Tensor whole = at::zeros({block * n}, at::TensorOptions(dtype).device(device));
  const Tensor part = whole.narrow(0, 0, block).clone();
  const std::vector<std::int64_t> rows(static_cast<std::size_t>(n), block);
  const double share = static_cast<double>(n - 1) / static_cast<double>(n);
  double factor = share;
  std::function<void()> call;
  if (op == "all_reduce") {
    factor = 2 * share;
    call = [&] { comm::all_reduce_(whole, comm::ReduceOp::kSum, comm); };
  } else if (op == "all_reduce_async") {
    factor = 2 * share;
    call = [&] { comm::all_reduce_async_(whole, comm::ReduceOp::kSum, comm).wait(); };
  } else if (op == "all_gather") {
    call = [&] { static_cast<void>(comm::all_gather(part, comm)); };
  } else if (op == "reduce_scatter") {
    call = [&] { static_cast<void>(comm::reduce_scatter(whole, rows, comm)); };
  } else if (op == "broadcast") {
    factor = n > 1 ? 1 : 0;
    call = [&] { comm::broadcast_(whole, 0, comm); };
  } else if (op == "all_to_all") {
    call = [&] { static_cast<void>(comm::all_to_all(whole, rows, comm)); };
  } else if (op == "barrier") {
    factor = 0;
    call = [&] { comm::barrier(comm); };
  } else {
    UQA_FAIL(ErrorCode::kConfig, "collective = {}, must be one of {}{}", op, fmt::join(collective_names(), ", "), suggestion(op, collective_names()));
  }
  // One element read back waits for a device; on the CPU it costs nothing.
  const auto ended = [&] {
    if (!device.is_cpu()) static_cast<void>(whole[0].item());
  };
  std::vector<double> seconds;
  for (int i = -1; i < repetitions; ++i) {  // the first one pays page faults and connections
    ended();
    comm::barrier(comm);
    const auto begin = Clock::now();
    call();
    ended();
    const double took = slowest(seconds_since(begin), comm);
    if (i >= 0) seconds.push_back(took);
  }
  std::nth_element(seconds.begin(), seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2), seconds.end());
  CollectiveMeasure measured{.op = op, .dtype = tensor_type_name(dtype), .bytes = op == "barrier" ? 0 : block * n * width, .np = comm.size(), .seconds = seconds[seconds.size() / 2]};
  measured.bus_bytes_per_s = measured.seconds > 0 ? factor * static_cast<double>(measured.bytes) / measured.seconds : 0;
  return measured;
}

double copy_bandwidth(const comm::Communicator& comm) {
  constexpr std::size_t kBytes = std::size_t{64} << 20;  // beyond the caches
  const std::vector<char> from(kBytes, 1);
  std::vector<char> to(kBytes, 2);
  double best = 0;
  for (int i = 0; i < 4; ++i) {
    comm::barrier(comm);
    const auto begin = Clock::now();
    std::memcpy(to.data(), from.data(), kBytes);
    // The compiler may not drop a copy that is looked at.
    UQA_CHECK(to[kBytes / 2] == 1, ErrorCode::kInternal, "a copy in memory went wrong");
    const double took = slowest(seconds_since(begin), comm);
    if (i > 0 && took > 0) best = std::max(best, static_cast<double>(kBytes) / took);
  }
  return best;
}

}  // namespace uqa::launch
