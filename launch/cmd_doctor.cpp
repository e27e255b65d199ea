#include <algorithm>
#include <cstdio>
#include <map>

#include <ATen/Version.h>
#include <hdf5.h>

#include "comm/backend.h"
#include "comm/communicator.h"
#include "comm/device.h"
#include "launch/bind.h"
#include "launch/collective_bench.h"
#include "launch/command.h"
#include "launch/device.h"
#include "launch/doctor.h"

namespace uqa::launch {
namespace {

constexpr std::int64_t kSmallBytes = 64;  // latency

std::string hdf5_version() {
  unsigned major = 0, minor = 0, release = 0;
  return H5get_libversion(&major, &minor, &release) < 0 ? "unknown" : fmt::format("{}.{}.{}", major, minor, release);
}

/// Shows how the ranks are placed, what they run on, and what their collectives reach.
class DoctorCommand final : public Command {
 public:
  DoctorCommand() {
    options_.add("device", &device_, "cpu or cuda: where the collectives are measured");
    options_.add("num_threads", &num_threads_, "threads of one rank that a run would be given; 0: cores of the host / ranks on it");
    bind_mesh(options_, parallel_);
    options_.add("bytes", &bytes_, "size of the tensors that bandwidth is measured with (> 0)");
    options_.add("repetitions", &repetitions_, "measured calls of each collective (> 0)");
    options_.add("network_bytes_per_s", &network_bytes_per_s_, "what the network between the hosts should give one rank; 0: not known, no comparison");
    options_.add("json", &json_, "one JSON object instead of tables");
    bind(options_, call_);
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kMany; }
  [[nodiscard]] std::string device() const override { return device_; }

  void run(comm::Session* session) override {
    apply(call_);
    const auto& world = session->world();
    comm::run_agreed(world, [&] {
      UQA_CHECK(bytes_ > 0 && repetitions_ > 0 && num_threads_ >= 0 && network_bytes_per_s_ >= 0, ErrorCode::kConfig,
                "--bytes = {}, --repetitions = {}, --num_threads = {}, --network_bytes_per_s = {}, must be > 0, > 0, >= 0 and >= 0", bytes_, repetitions_, num_threads_,
                network_bytes_per_s_);
    });
    const auto ranks = all_facts(*session);
    const comm::Mesh mesh(world, static_cast<int>(parallel_.dp), static_cast<int>(parallel_.tp), static_cast<int>(parallel_.table_group));
    Json report{{"versions", versions(*session)}};
    for (const auto& rank : ranks) report["ranks"].push_back(rank.to_json());
    auto warnings = diagnose(ranks);
    measure(*session, mesh, ranks, report, warnings);
    report["warnings"] = warnings;
    if (world.rank() != 0) return;
    std::fputs(json_ ? (report.dump() + "\n").c_str() : text_of(report).c_str(), stdout);
  }

 private:
  [[nodiscard]] std::vector<RankFacts> all_facts(const comm::Session& session) const {
    const auto& world = session.world();
    RankFacts mine = facts_of_this_process(world.rank(), num_threads_);
    const auto library = device_ == "cuda" ? comm::DeviceLibrary{} : comm::load_device_library(nccl_plugin_path());
    try {
      if (device_ == "cuda") {
        mine.device = comm::describe_device(world);
      } else if (!library.plugin) {
        mine.plugin_trouble = library.trouble;
      } else {
        static_cast<void>(library.plugin->device_ids());
      }
    } catch (const Error& error) {
      mine.plugin_trouble = error.what();
    }
    std::vector<RankFacts> all;
    for (int rank = 0; rank < world.size(); ++rank) {
      all.push_back(RankFacts::from_json(parse_json(comm::broadcast_text(mine.to_json().dump(), rank, world), "facts of a rank")));
    }
    std::map<std::string, std::int64_t> ranks_of;
    for (const auto& rank : all) ++ranks_of[rank.host];
    for (auto& rank : all) {
      if (rank.threads == 0) rank.threads = std::max<std::int64_t>(1, rank.host_cores / ranks_of[rank.host]);
    }
    return all;
  }

  [[nodiscard]] static Json versions(const comm::Session& session) {
    const auto& backend = session.world().backend();
    Json found{{"libtorch", TORCH_VERSION}, {"cpu_capability", at::get_cpu_capability()}, {"mpi", backend.transport()}, {"hdf5", hdf5_version()}, {"compiler", __VERSION__}};
    if (backend.plugin()) found["cuda"] = backend.plugin()->versions();
    return found;
  }

  /// Collective. Axes of one rank have nothing to measure; groups of one axis talk at the same time, rank 0's is shown.
  void measure(const comm::Session& session, const comm::Mesh& mesh, const std::vector<RankFacts>& ranks, Json& report, std::vector<std::string>& warnings) const {
    const auto& world = mesh.world();
    report["copy_bytes_per_s"] = copy_bandwidth(world);
    report["collectives"] = Json::array();
    std::vector<std::string> hosts;
    for (const auto& rank : ranks) {
      if (std::find(hosts.begin(), hosts.end(), rank.host) == hosts.end()) hosts.push_back(rank.host);
    }
    const auto my_host = std::find(hosts.begin(), hosts.end(), ranks[static_cast<std::size_t>(world.rank())].host) - hosts.begin();
    std::vector<comm::Communicator> axes{world};
    if (hosts.size() > 1) axes.push_back(world.split(static_cast<int>(my_host), world.rank(), "host"));
    for (const auto& axis : {mesh.dp(), mesh.tp(), mesh.table(), mesh.table_replica()}) {
      if (axis.size() < world.size()) axes.push_back(axis);
    }
    for (const auto& axis : axes) {
      if (comm::all_reduce(axis.size(), comm::ReduceOp::kMin, world) == 1) continue;
      const bool one_host = comm::all_reduce(my_host, comm::ReduceOp::kMin, axis) == comm::all_reduce(my_host, comm::ReduceOp::kMax, axis);
      const double yardstick = !session.world().backend().device().is_cpu() ? 0 : one_host ? report.at("copy_bytes_per_s").get<double>() : network_bytes_per_s_;
      for (const auto& op : collective_names()) {
        const auto small = measure_collective(op, at::kFloat, kSmallBytes, axis, static_cast<int>(repetitions_), session.world().backend().device());
        const auto large = op == "barrier" ? small : measure_collective(op, at::kFloat, bytes_, axis, static_cast<int>(repetitions_), session.world().backend().device());
        Json row{{"axis", axis.axis()}, {"np", axis.size()}, {"op", op}, {"latency_s", small.seconds}, {"bytes", large.bytes}, {"bus_bytes_per_s", large.bus_bytes_per_s}};
        if (yardstick > 0 && op != "barrier") {
          const double fraction = large.bus_bytes_per_s / yardstick;
          row["yardstick"] = one_host ? "memory copy" : "network";
          row["fraction"] = fraction;
          if (fraction < kPoorFraction) {
            warnings.push_back(fmt::format("axis {}: {} of {} bytes reaches {:.1f} % of {}; ranks that share a core or a busy host do that, see the bindings above", axis.axis(), op,
                                           large.bytes, 100 * fraction, one_host ? "a memory copy" : "the network"));
          }
        }
        report["collectives"].push_back(row);
      }
    }
  }

  [[nodiscard]] static std::string text_of(const Json& report) {
    std::string text = "Ranks\n";
    text += fmt::format("  {:>4}  {:<20} {:>10}  {:<16} {:>7}  {}\n", "rank", "host", "host cores", "may run on", "threads", "device");
    for (const auto& json : report.at("ranks")) {
      const auto rank = RankFacts::from_json(json);
      text += fmt::format("  {:>4}  {:<20} {:>10}  {:<16} {:>7}  {}\n", rank.rank, rank.host, rank.host_cores, ranges(rank.cores), rank.threads, rank.device);
    }
    text += "\nVersions\n";
    for (const auto& [name, version] : report.at("versions").items()) text += fmt::format("  {:<16} {}\n", name, version.get<std::string>());
    const auto trouble = report.at("ranks").front().at("plugin_trouble").get<std::string>();
    text += fmt::format("\nCUDA\n  {}\n", trouble.empty() ? "--device=cuda can be used" : trouble);
    text += fmt::format("\nMemory copy, every rank at once: {:.2f} GB/s a rank\n", 1e-9 * report.at("copy_bytes_per_s").get<double>());
    text += "\nCollectives (float32; latency with 64 bytes)\n";
    if (report.at("collectives").empty()) text += "  one rank: none\n";
    else text += fmt::format("  {:<6} {:>4}  {:<17} {:>12} {:>12} {:>12}  {}\n", "axis", "np", "op", "latency us", "bytes", "bus GB/s", "reaches");
    for (const auto& row : report.at("collectives")) {
      const auto fraction = row.contains("fraction") ? fmt::format("{:.0f} % of {}", 100 * row.at("fraction").get<double>(), row.at("yardstick").get<std::string>()) : std::string("-");
      text += fmt::format("  {:<6} {:>4}  {:<17} {:>12.1f} {:>12} {:>12.3f}  {}\n", row.at("axis").get<std::string>(), row.at("np").get<int>(), row.at("op").get<std::string>(),
                          1e6 * row.at("latency_s").get<double>(), row.at("bytes").get<std::int64_t>(), 1e-9 * row.at("bus_bytes_per_s").get<double>(), fraction);
    }
    text += fmt::format("\n{} warning(s)\n", report.at("warnings").size());
    for (const auto& warning : report.at("warnings")) text += fmt::format("  - {}\n", warning.get<std::string>());
    return text;
  }

  std::string device_ = "cpu";
  trainer::ParallelConfig parallel_;
  std::int64_t num_threads_ = 0, bytes_ = std::int64_t{4} << 20, repetitions_ = 5;
  double network_bytes_per_s_ = 0;
  bool json_ = false;
  CallSettings call_;
  OptionSet options_{"doctor", "shows how ranks are placed, what their collectives reach, and what is misconfigured", "mpirun -np 4 uqa doctor --parallel.tp=2"};
};

}  // namespace

std::unique_ptr<Command> make_doctor_command() { return std::make_unique<DoctorCommand>(); }

}  // namespace uqa::launch
