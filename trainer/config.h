// trainer/config.h - settings of the training stages: plain aggregates; launch/ binds each field to a dotted option once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace uqa::trainer {

struct OptimConfig {
  double peak_lr = 1e-3;          ///< learning rate after warm-up; > 0
  std::string schedule = "constant";  ///< "constant" or "cosine" (to min_lr_fraction of the peak at the last step)
  double warmup_fraction = 0.0;   ///< share of all steps spent warming up linearly; in [0, 1)
  double min_lr_fraction = 0.1;   ///< where cosine ends; in [0, 1]
  double weight_decay = 0.0;      ///< AdamW's decoupled decay; >= 0
  double beta1 = 0.9;             ///< in [0, 1)
  double beta2 = 0.999;           ///< in [0, 1)
  double eps = 1e-8;              ///< > 0
  double clip_norm = 0.0;         ///< global gradient norm is clipped to this; 0: no clipping
  std::string kind = "adamw";     ///< "adamw" or "sgd" (plain, for parity tests)
  void validate() const;          ///< Error(kConfig) naming the field
};

struct BatchConfig {
  std::int64_t global_users = 32; ///< samples of one optimizer step over all ranks; > 0; does not depend on the world size
  std::int64_t micro_users = 0;   ///< most samples of one forward pass on one rank; 0: no limit. Smaller needs less memory
  std::int64_t loader_threads = 1;///< threads of one rank that prepare batches ahead of time; > 0
  void validate() const;
};

struct ParallelConfig {
  std::int64_t dp = 0;            ///< data-parallel degree; 0: world size / tp
  std::int64_t tp = 1;            ///< tensor-parallel degree; > 0
  std::int64_t llm_tp = 0;        ///< that of the LLM; 0: tp. The larger of the two is the mesh's tp axis, the other must divide it
  std::int64_t encoder_tp = 0;    ///< that of the user encoder; 0: tp
  std::string tables = "sharded";  ///< feature tables and item softmax: "sharded" by rows over a table group (nothing is cut on one rank), or "replicated"
  std::int64_t table_group = 0;   ///< ranks that hold the sharded tables once; 0: the world, at most 64. Divides the world, a multiple of tp
  std::int64_t table_min_rows = 4096;  ///< tables with fewer rows are replicated in any case; >= 0
  /// What data-parallel ranks share out instead of each holding all of it: "none", "optimizer" (its state; each rank updates a part of every
  /// parameter), or "full" (parameters and gradients, too; a layer's are gathered while it runs). Row-sharded tables stay as they are.
  std::string shard = "none";
  double bucket_bytes = 25e6;     ///< size of a gradient bucket; > 0
  void validate() const;
  [[nodiscard]] std::int64_t llm_degree() const { return llm_tp > 0 ? llm_tp : tp; }
  [[nodiscard]] std::int64_t encoder_degree() const { return encoder_tp > 0 ? encoder_tp : tp; }
  /// Size of the mesh's tp axis: ranks of it see the same samples.
  [[nodiscard]] std::int64_t tp_axis() const { return llm_degree() > encoder_degree() ? llm_degree() : encoder_degree(); }
};

struct CheckpointConfig {
  std::int64_t every_steps = 0;   ///< write a checkpoint every so many steps; 0: at each epoch's end
  std::int64_t keep = 2;          ///< newest checkpoints kept besides the best; > 0
  double time_limit_s = 0;        ///< save and exit 75 after so many seconds; 0: no limit
  void validate() const;
};

struct TrainConfig {
  std::int64_t epochs = 10;       ///< passes over the training samples; > 0
  std::int64_t max_steps = 0;     ///< stop after so many optimizer steps; 0: epochs decide
  std::int64_t seed = 1;          ///< weights, data order and dropout
  std::int64_t patience = 0;      ///< stop when the validation metric has not improved for so many epochs; 0: never
  std::int64_t log_every_steps = 10;  ///< one metrics record every so many steps; > 0
  std::string dtype = "float32";  ///< GEMM type: "float32" or "bf16" (master weights stay float32)
  std::int64_t num_threads = 0;   ///< OpenMP threads of one rank; 0: cores of the host / ranks on it
  /// Two runs of one command give the same bits, also across a resume: operators of LibTorch without a fixed order of sums are errors, the number of
  /// threads must be given, and a resume with other ranks, threads or vector instructions is refused.
  bool deterministic = false;
  void validate() const;
};

struct MemoryConfig {
  std::string recompute = "none"; ///< "none", or "layers": encoder and LLM layers run again in the backward pass instead of keeping activations
  void validate() const;
};

/// Everything the shared loop needs.
struct LoopConfig {
  OptimConfig optim;
  BatchConfig batch;
  ParallelConfig parallel;
  CheckpointConfig checkpoint;
  TrainConfig train;
  MemoryConfig memory;
  void validate() const;
};

/// The settings that change what is learned and are not the same in both: "learning rate 0.001 (0.0004)". Precision is left out.
[[nodiscard]] std::vector<std::string> differing_settings(const LoopConfig& here, const LoopConfig& there);

}  // namespace uqa::trainer
