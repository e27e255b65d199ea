#include "trainer/config.h"

#include <cmath>

#include "core/error.h"
#include "trainer/trained_parameters.h"

namespace uqa::trainer {
namespace {

template <typename T>
void require(bool ok, const char* field, const T& value, const char* rule) {
  UQA_CHECK(ok, ErrorCode::kConfig, "{} = {}, must be {}; change --{}", field, value, rule, field);
}

}  // namespace

void OptimConfig::validate() const {
  require(std::isfinite(peak_lr) && peak_lr > 0, "optim.peak_lr", peak_lr, "a number > 0");
  require(schedule == "constant" || schedule == "cosine", "optim.schedule", schedule, "constant or cosine");
  require(warmup_fraction >= 0 && warmup_fraction < 1, "optim.warmup_fraction", warmup_fraction, "in [0, 1)");
  require(min_lr_fraction >= 0 && min_lr_fraction <= 1, "optim.min_lr_fraction", min_lr_fraction, "in [0, 1]");
  require(std::isfinite(weight_decay) && weight_decay >= 0, "optim.weight_decay", weight_decay, "a number >= 0");
  require(beta1 >= 0 && beta1 < 1, "optim.beta1", beta1, "in [0, 1)");
  require(beta2 >= 0 && beta2 < 1, "optim.beta2", beta2, "in [0, 1)");
  require(std::isfinite(eps) && eps > 0, "optim.eps", eps, "a number > 0");
  require(std::isfinite(clip_norm) && clip_norm >= 0, "optim.clip_norm", clip_norm, "a number >= 0 (0: no clipping)");
  require(kind == "adamw" || kind == "sgd", "optim.kind", kind, "adamw or sgd");
}

void BatchConfig::validate() const {
  require(global_users > 0, "batch.global_users", global_users, "> 0");
  require(micro_users >= 0, "batch.micro_users", micro_users, ">= 0 (0: no limit)");
  require(loader_threads > 0, "batch.loader_threads", loader_threads, "> 0");
}

void ParallelConfig::validate() const {
  require(dp >= 0, "parallel.dp", dp, ">= 0 (0: world size / tp)");
  require(tp > 0, "parallel.tp", tp, "> 0");
  require(llm_tp >= 0, "parallel.llm_tp", llm_tp, ">= 0 (0: parallel.tp)");
  require(encoder_tp >= 0, "parallel.encoder_tp", encoder_tp, ">= 0 (0: parallel.tp)");
  UQA_CHECK(tp_axis() % llm_degree() == 0 && tp_axis() % encoder_degree() == 0, ErrorCode::kConfig,
            "parallel.llm_tp = {} and parallel.encoder_tp = {}, one must be a multiple of the other; change --parallel.llm_tp or --parallel.encoder_tp",
            llm_degree(), encoder_degree());
  require(tables == "replicated" || tables == "sharded", "parallel.tables", tables, "replicated or sharded");
  require(table_group >= 0, "parallel.table_group", table_group, ">= 0 (0: the world, at most 64 ranks)");
  require(table_min_rows >= 0, "parallel.table_min_rows", table_min_rows, ">= 0");
  static_cast<void>(parse_shard(shard));
  require(std::isfinite(bucket_bytes) && bucket_bytes > 0, "parallel.bucket_bytes", bucket_bytes, "a number > 0");
}

void CheckpointConfig::validate() const {
  require(every_steps >= 0, "checkpoint.every_steps", every_steps, ">= 0 (0: at each epoch's end)");
  require(keep > 0, "checkpoint.keep", keep, "> 0");
  require(std::isfinite(time_limit_s) && time_limit_s >= 0, "checkpoint.time_limit_s", time_limit_s, "a number >= 0 (0: no limit)");
}

void TrainConfig::validate() const {
  require(epochs > 0, "train.epochs", epochs, "> 0");
  require(max_steps >= 0, "train.max_steps", max_steps, ">= 0 (0: epochs decide)");
  require(seed >= 0, "train.seed", seed, ">= 0");
  require(patience >= 0, "train.patience", patience, ">= 0 (0: never stop early)");
  require(log_every_steps > 0, "train.log_every_steps", log_every_steps, "> 0");
  require(dtype == "float32" || dtype == "bf16", "train.dtype", dtype, "float32 or bf16");
  require(num_threads >= 0, "train.num_threads", num_threads, ">= 0 (0: cores of the host / ranks on it)");
  UQA_CHECK(!deterministic || num_threads > 0, ErrorCode::kConfig,
            "deterministic is on and train.num_threads = {}: sums depend on the number of threads, and hosts differ in theirs; give --train.num_threads", num_threads);
}

void MemoryConfig::validate() const {
  require(recompute == "none" || recompute == "layers", "memory.recompute", recompute, "none or layers");
}

void LoopConfig::validate() const {
  optim.validate();
  batch.validate();
  parallel.validate();
  checkpoint.validate();
  train.validate();
  memory.validate();
}

std::vector<std::string> differing_settings(const LoopConfig& here, const LoopConfig& there) {
  std::vector<std::string> list;
  const auto compare = [&](const char* name, const auto& a, const auto& b) {
    if (a != b) list.push_back(fmt::format("{} {} ({})", name, a, b));
  };
  compare("optimizer", here.optim.kind, there.optim.kind);
  compare("learning rate", here.optim.peak_lr, there.optim.peak_lr);
  compare("schedule", here.optim.schedule, there.optim.schedule);
  compare("warm-up fraction", here.optim.warmup_fraction, there.optim.warmup_fraction);
  compare("weight decay", here.optim.weight_decay, there.optim.weight_decay);
  compare("beta1", here.optim.beta1, there.optim.beta1);
  compare("beta2", here.optim.beta2, there.optim.beta2);
  compare("eps", here.optim.eps, there.optim.eps);
  compare("clip norm", here.optim.clip_norm, there.optim.clip_norm);
  compare("batch", here.batch.global_users, there.batch.global_users);
  compare("epochs", here.train.epochs, there.train.epochs);
  compare("max steps", here.train.max_steps, there.train.max_steps);
  compare("patience", here.train.patience, there.train.patience);
  return list;
}

}  // namespace uqa::trainer
