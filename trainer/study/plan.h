// trainer/study/plan.h - what a run is and costs before it starts: parameters, FLOPs, memory, bytes on the wire, time, layout.
//
//   const auto shape = study::shape_of(config);                        // reads lengths and splits of the data set
//   const auto plan = study::plan_pretrain(config, shape, hardware, /*ranks=*/16);
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/schema.h"
#include "models/cost.h"
#include "trainer/align.h"
#include "trainer/pretrain.h"
#include "trainer/study/hardware.h"
#include "trainer/study/study_file.h"

namespace uqa::trainer::study {

/// What a plan needs to know about the data.
struct DataShape {
  data::Schema schema;
  std::vector<std::int64_t> lengths;     ///< inputs (= labels) of each training sample; empty where only the mean is known
  std::int64_t train_users = 0;
  double mean_length = 0;                ///< of those inputs
  double held_out_rows = 0;              ///< inputs of the validation and test spans
  bool exact = false;                    ///< from the data set itself
};
/// From the data set that the config names: the splits that the run will make, so what follows from them is exact.
[[nodiscard]] DataShape shape_of(const PretrainConfig& config);
/// From [data] of a study file: schema (a source schema whose tables have rows), users, interactions. Error(kConfig) naming the key.
[[nodiscard]] DataShape shape_of(const Options& data_section, const PretrainConfig& config, const std::string& what);

/// How the work of a stage lies on the ranks.
struct Layout {
  std::int64_t ranks = 1, dp = 1, tp = 1;
  std::int64_t table_group = 1;  ///< ranks that share one copy of the tables; 1: replicated
  [[nodiscard]] std::string describe() const;
};

/// Bytes of one rank.
struct MemoryPlan {
  double process = 0, weights = 0, gradients = 0, optimizer = 0, activations = 0, checkpoint = 0;
  [[nodiscard]] double total() const { return process + weights + gradients + optimizer + activations + checkpoint; }
};

struct StagePlan {
  std::string stage;
  models::ParameterCounts parameters;
  double full_attention_flops = 0;        ///< flops.attention if every key of a history counted, seen or not; 0 without attention
  std::int64_t adapter_parameters = 0, lora_parameters = 0, llm_parameters = 0;  ///< align
  std::int64_t steps = 0;
  double interactions = 0, labels = 0, llm_rows = 0;
  models::FlopCounts flops;               ///< pretrain: of all training steps and ranks, by module
  double llm_flops = 0;                   ///< align: of all training steps
  [[nodiscard]] double total_flops() const { return flops.total() + llm_flops; }
  Layout layout;
  MemoryPlan memory;
  double wire_bytes_per_step = 0;         ///< sent by one rank
  double compute_s = 0, exposed_comm_s = 0, seconds = 0;
  bool exact = false;                     ///< steps, interactions and FLOPs are those of the run
  bool fits = true;
  std::string advice;                     ///< where it does not fit: what would
  std::string time_from;                  ///< "measured" or "hardware figures"
  [[nodiscard]] Json to_json() const;
};

/// The fastest layout of `ranks` ranks that fits: tp over powers of two that divide heads and stay in a node, table_group over powers of
/// two up to all ranks. `only` not null: that layout and no other.
[[nodiscard]] StagePlan plan_pretrain(const PretrainConfig& config, const DataShape& shape, const Hardware& hardware, std::int64_t ranks, const Layout* only = nullptr);

/// What plan_align needs to know about the LLM and the questions.
struct AlignShape {
  models::LlmConfig llm;
  std::int64_t encoder_hidden = 0;
  models::ParameterCounts encoder;
  double questions = 0, rows_per_question = 0;
};
[[nodiscard]] StagePlan plan_align(const AlignConfig& config, const AlignShape& shape, const Hardware& hardware, std::int64_t ranks);

}  // namespace uqa::trainer::study
