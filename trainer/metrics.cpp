#include "trainer/metrics.h"

#include <sys/resource.h>

#include <vector>

#include "core/log.h"
#include "trainer/device.h"

namespace uqa::trainer {

std::int64_t peak_rss_bytes() {
  rusage usage{};
  UQA_CHECK(::getrusage(RUSAGE_SELF, &usage) == 0, ErrorCode::kInternal, "getrusage failed");
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;  // Linux counts in KiB
}

StepMeter::StepMeter(const comm::Mesh& mesh) : mesh_(mesh), bytes_before_(mesh.bytes_sent()), table_bytes_before_(table_bytes_sent()) {}

void StepMeter::add(const AgreedStep& step, double loss_sum_nats, double flops, const StepTimes& times) {
  loss_sum_nats_ += loss_sum_nats;
  labels_ += step.num_labels;
  interactions_ += step.num_interactions;
  tokens_ += step.num_tokens;
  flops_ += flops;
  times_.total_s += times.total_s;
  times_.data_wait_s += times.data_wait_s;
  times_.comm_exposed_s += times.comm_exposed_s;
}

double StepMeter::loss_nats() const { return labels_ > 0 ? loss_sum_nats_ / static_cast<double>(labels_) : 0; }

Json StepMeter::record(std::int64_t step, double epoch, double lr, double grad_norm) {
  const double seconds = times_.total_s > 0 ? times_.total_s : 1;
  const std::int64_t bytes = mesh_.bytes_sent(), table_bytes = table_bytes_sent();
  Json record{{"kind", "train"},
              {"step", step},
              {"epoch", epoch},
              {"loss_nats", loss_nats()},
              {"lr", lr},
              {"grad_norm", grad_norm},
              {"labels", labels_},
              {"seconds", times_.total_s},
              {"interactions_per_s", static_cast<double>(interactions_) / seconds},
              {"tokens_per_s", static_cast<double>(tokens_) / seconds},
              {"data_wait_fraction", times_.data_wait_s / seconds},
              {"comm_exposed_fraction", times_.comm_exposed_s / seconds},
              {"comm_bytes", bytes - bytes_before_},
              {"comm_table_bytes", table_bytes - table_bytes_before_},
              {"peak_rss_bytes", peak_rss_bytes()},
              {"flops_per_s", flops_ / seconds},
              {"slowest_rank", straggler()}};
  if (!mesh_.device().is_cpu()) record["peak_device_bytes"] = peak_device_bytes(mesh_.device());
  loss_sum_nats_ = flops_ = 0;
  labels_ = interactions_ = tokens_ = 0;
  times_ = {};
  bytes_before_ = mesh_.bytes_sent();  // what the ranks told each other above is none of the steps'
  table_bytes_before_ = table_bytes;
  return record;
}

Json StepMeter::straggler() {
  const auto& world = mesh_.world();
  // Seconds as whole nanoseconds: the same number on every rank, whatever the transport.
  const auto nanoseconds = [](double seconds) { return static_cast<std::int64_t>(seconds * 1e9); };
  at::Tensor mine = at::empty({1, 3}, at::kLong);
  auto* const values = mine.data_ptr<std::int64_t>();
  values[0] = nanoseconds(times_.total_s);
  values[1] = nanoseconds(times_.data_wait_s);
  values[2] = nanoseconds(times_.comm_exposed_s);
  const at::Tensor all = comm::all_gather(mine, world);
  std::vector<RankTimes> ranks(static_cast<std::size_t>(world.size()));
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    const auto* const theirs = all.const_data_ptr<std::int64_t>() + 3 * rank;
    ranks[rank] = {.total_s = 1e-9 * static_cast<double>(theirs[0]), .data_wait_s = 1e-9 * static_cast<double>(theirs[1]), .comm_wait_s = 1e-9 * static_cast<double>(theirs[2])};
  }
  const auto report = stragglers_.add(ranks);
  if (!report.warning.empty() && world.rank() == 0) log::warn("metrics", "{}", report.warning);
  return report.to_json();
}

Json StepMeter::state() const { return {{"loss_sum_nats", loss_sum_nats_}, {"labels", labels_}}; }

void StepMeter::restore(const Json& state, const std::string& what) {
  loss_sum_nats_ = get<double>(state, "loss_sum_nats", what);
  labels_ = get<std::int64_t>(state, "labels", what);
}

std::int64_t StepMeter::table_bytes_sent() const { return mesh_.table().bytes_sent() + mesh_.table_replica().bytes_sent(); }

}  // namespace uqa::trainer
