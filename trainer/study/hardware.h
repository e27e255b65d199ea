// trainer/study/hardware.h - what a machine can do, from a file or measured here. Torch-free.
//
//   [hardware]                          [measured]
//   name = 8 x H100 SXM a node          trm_plus = 1.2e6:2.9e10, 8e6:6.1e10
//   ranks_per_node = 8                  ; training FLOPs of an interaction : FLOP/s of one rank's training step
//   ...
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/file.h"
#include "core/json.h"

namespace uqa::trainer::study {

struct Hardware {
  std::string name = "unnamed";
  std::int64_t ranks_per_node = 1;    ///< > 0
  double memory_bytes = 0;            ///< of one rank; > 0
  double flops_per_s = 0;             ///< of one rank's large matrix products in the type of training; > 0
  double efficiency = 0.4;            ///< share of it that an encoder's layers reach; in (0, 1]
  double softmax_efficiency = 0.6;    ///< share of it that the item softmax reaches; in (0, 1]
  double memory_bytes_per_s = 0;      ///< > 0
  double node_bytes_per_s = 0;        ///< one rank to others of its node; > 0
  double network_bytes_per_s = 0;     ///< one rank to other nodes; > 0
  double latency_s = 0;               ///< of one message; >= 0
  double step_s = 0;                  ///< of a step whatever its size (launches, agreement); >= 0
  double process_bytes = 0;           ///< a rank before it holds a model; >= 0
  double start_s = 1;                 ///< start and end of a stage's process; >= 0
  /// By encoder: (training FLOPs of an interaction, FLOP/s), ascending. Where an encoder is here, its time comes from here.
  std::map<std::string, std::vector<std::pair<double, double>>> measured;

  /// FLOP/s of a training step, interpolated in logarithms and constant beyond the ends; 0 when the encoder was not measured.
  [[nodiscard]] double measured_rate(const std::string& encoder, double flops_per_interaction) const;
  void validate(const std::string& what) const;
  [[nodiscard]] std::string to_ini() const;
};

/// Error(kConfig) naming line, key and the nearest known one.
[[nodiscard]] Hardware read_hardware(const fs::path& file);

}  // namespace uqa::trainer::study
