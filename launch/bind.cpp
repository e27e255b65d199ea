#include "launch/bind.h"

#include <algorithm>

#include "core/log.h"
#include "core/text.h"

namespace uqa::launch {

void bind(OptionSet& options, trainer::LoopConfig& config) {
  auto& optim = config.optim;
  options.add("optim.kind", &optim.kind, "adamw or sgd");
  options.add("optim.peak_lr", &optim.peak_lr, "learning rate after warm-up (> 0)");
  options.add("optim.schedule", &optim.schedule, "constant or cosine");
  options.add("optim.warmup_fraction", &optim.warmup_fraction, "share of all steps spent warming up, in [0, 1)");
  options.add("optim.min_lr_fraction", &optim.min_lr_fraction, "where cosine ends, as a share of the peak, in [0, 1]");
  options.add("optim.weight_decay", &optim.weight_decay, "decoupled weight decay (>= 0)");
  options.add("optim.beta1", &optim.beta1, "in [0, 1)");
  options.add("optim.beta2", &optim.beta2, "in [0, 1)");
  options.add("optim.eps", &optim.eps, "> 0");
  options.add("optim.clip_norm", &optim.clip_norm, "largest global gradient norm; 0: no clipping");
  auto& batch = config.batch;
  options.add("batch.global_users", &batch.global_users, "samples of one step over all ranks, whatever their number (> 0)");
  options.add("batch.loader_threads", &batch.loader_threads, "threads that prepare batches (> 0)");
  options.add("batch.micro_users", &batch.micro_users, "most samples of one forward pass on one rank; 0: no limit");
  bind(options, config.parallel);
  auto& checkpoint = config.checkpoint;
  options.add("checkpoint.every_steps", &checkpoint.every_steps, "write one every so many steps; 0: at each epoch's end");
  options.add("checkpoint.keep", &checkpoint.keep, "newest ones kept besides the best (> 0)");
  options.add("checkpoint.time_limit_s", &checkpoint.time_limit_s, "save and exit 75 after so many seconds; 0: no limit");
  auto& train = config.train;
  options.add("train.epochs", &train.epochs, "passes over the training samples (> 0)");
  options.add("train.max_steps", &train.max_steps, "stop after so many steps; 0: epochs decide");
  options.add("train.seed", &train.seed, "weights, data order and dropout");
  options.add("train.patience", &train.patience, "stop after so many epochs without a better metric; 0: never");
  options.add("train.log_every_steps", &train.log_every_steps, "one metrics record every so many steps (> 0)");
  options.add("train.dtype", &train.dtype, "GEMM type, float32 or bf16 (master weights stay float32)");
  options.add("memory.recompute", &config.memory.recompute, "none, or layers: they run again in the backward pass instead of keeping activations");
  options.add("train.num_threads", &train.num_threads, "threads of one rank; 0: cores of the host / ranks on it");
  options.add("deterministic", &train.deterministic, "the same bits in every run of this command: wants train.num_threads, and refuses a resume with other ranks, threads or vector instructions");
}

void bind_mesh(OptionSet& options, trainer::ParallelConfig& parallel) {
  options.add("parallel.dp", &parallel.dp, "data-parallel degree; 0: world size / tp");
  options.add("parallel.tp", &parallel.tp, "tensor-parallel degree: ranks that split each layer (> 0)");
  options.add("parallel.table_group", &parallel.table_group, "ranks that hold the sharded tables once; 0: all, at most 64");
}

void bind(OptionSet& options, trainer::ParallelConfig& parallel) {
  bind_mesh(options, parallel);
  options.add("parallel.tables", &parallel.tables, "feature tables and item softmax: sharded by rows over a table group, or replicated");
  options.add("parallel.table_min_rows", &parallel.table_min_rows, "tables with fewer rows are replicated in any case (>= 0)");
  options.add("parallel.shard", &parallel.shard, "what data-parallel ranks share out: none, optimizer (its state; each updates a part of every parameter), or full (parameters and gradients too, gathered a layer at a time)");
  options.add("parallel.bucket_bytes", &parallel.bucket_bytes, "size of a gradient bucket (> 0)");
}

void bind(OptionSet& options, trainer::UserModelSettings& s) {
  options.add("encoder", &s.encoder, "sasrec, hstu, gru4rec, mamba2 or trm_plus");
  options.add("model.hidden", &s.hidden, "backbone width (> 0, divisible by model.num_heads)");
  options.add("model.num_layers", &s.num_layers, "> 0");
  options.add("model.num_heads", &s.num_heads, "> 0");
  options.add("model.inner", &s.inner, "FFN (sasrec), GRU (gru4rec) or GLU (trm_plus) width; 0: the encoder's own rule");
  options.add("model.ffn_multiple_of", &s.ffn_multiple_of, "trm_plus rounds its own GLU width up to this (> 0)");
  options.add("model.max_len", &s.max_len, "most recent interactions used (> 0)");
  options.add("model.norm_eps", &s.norm_eps, "> 0");
  options.add("model.rope_base", &s.rope_base, "> 0");
  options.add("model.dropout", &s.dropout, "hidden dropout, in [0, 1)");
  options.add("model.attention_dropout", &s.attention_dropout, "in [0, 1)");
  options.add("model.hstu.linear_dim", &s.hstu.linear_dim, "hstu: width of u and v per head; 0: hidden / num_heads");
  options.add("model.hstu.attention_dim", &s.hstu.attention_dim, "hstu: width of q and k per head; 0: hidden / num_heads");
  options.add("model.hstu.norm", &s.hstu.norm, "hstu: attention weights are divided by max_len (the reference) or by the history's true_len");
  options.add("model.hstu.bias", &s.hstu.bias, "hstu: relative attention bias: none (in effect the reference's), position, or position_time");
  options.add("model.mamba2.head_dim", &s.mamba2.head_dim, "mamba2: width of one head; divides expand * hidden");
  options.add("model.mamba2.state_size", &s.mamba2.state_size, "mamba2: > 0");
  options.add("model.mamba2.expand", &s.mamba2.expand, "mamba2: inner width / hidden (> 0)");
  options.add("model.mamba2.conv_kernel", &s.mamba2.conv_kernel, "mamba2: taps of the causal convolution (> 0)");
  options.add("model.mamba2.num_groups", &s.mamba2.num_groups, "mamba2: groups of heads that share B and C (> 0)");
  options.add("model.mamba2.chunk", &s.mamba2.chunk, "mamba2: rows of a history that are computed together; changes speed and rounding only (> 0)");
  options.add("model.sasrec.same_start", &s.sasrec_same_start, "sasrec: every attention layer starts with the first one's input projection, as the reference's do");
  options.add("model.item_dim", &s.item_dim, "width of the item table (> 0)");
  options.add("model.feature_dim", &s.feature_dim, "width of every other table (> 0)");
  options.add("model.dims", &s.dims, "widths of single tables, for example brand=32,shop=32");
}

void bind(OptionSet& options, CallSettings& call) {
  options.add("overwrite", &call.overwrite, "replace an output directory that holds something else");
  options.add("log.level", &call.log_level, "debug, info, warn or error");
  options.add("log.all_ranks", &call.log_all_ranks, "info lines from every rank, not only the first");
  options.add("comm.timeout_s", &call.timeout_s, "end the job when a collective waits longer (> 0)");
  for (const char* name : {"overwrite", "log.level", "log.all_ranks", "comm.timeout_s"}) options.set_transient(name);
}

void bind_device(OptionSet& options, std::string& device) {
  options.add("device", &device, "where models and batches live: cpu, or cuda (an NVIDIA GPU of its own for each rank)");
  options.set_transient("device");
}

void apply(const CallSettings& call) {
  const std::vector<std::string> levels{"debug", "info", "warn", "error"};
  const auto at = std::find(levels.begin(), levels.end(), call.log_level);
  UQA_CHECK(at != levels.end(), ErrorCode::kConfig, "--log.level = {}, must be debug, info, warn or error{}", call.log_level,
            suggestion(call.log_level, levels));
  UQA_CHECK(call.timeout_s > 0, ErrorCode::kConfig, "--comm.timeout_s = {}, must be above 0", call.timeout_s);
  log::configure(static_cast<log::Level>(at - levels.begin()), call.log_all_ranks);
}

}  // namespace uqa::launch
