// bench/llm_step.cpp - speed of the decoder on packed alignment-like batches: forward and forward + backward, with the GEMM rate of
// the same machine beside them. Random weights of SmolLM2-135M's sizes; no files are read. Prints one JSON line.
//
//   llm_step [threads=2] [sequences=20] [prompt=120] [options=4] [words=8] [rank=16] [bf16=1] [repeats=5]
//
// Effective FLOPs: forward 2 N T, forward + backward with a frozen base 4 N T, N = parameters of the layers' linear maps.

#include <sys/resource.h>

#include <chrono>
#include <cstdlib>
#include <string>

#include <malloc.h>

#include "models/llm/decoder.h"

namespace {

using namespace uqa::models;

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double cpu_s() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec); };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

struct Timing {
  double wall_s = 1e30, cpu_s = 1e30;
};

template <typename F>
Timing best_of(std::int64_t repeats, F&& f) {
  f();
  Timing best;
  for (std::int64_t i = 0; i < repeats; ++i) {
    const double wall = now_s(), cpu = cpu_s();
    f();
    best.wall_s = std::min(best.wall_s, now_s() - wall);
    best.cpu_s = std::min(best.cpu_s, cpu_s() - cpu);
  }
  return best;
}

std::int64_t argument(int argc, char** argv, const std::string& name, std::int64_t fallback) {
  for (int i = 1; i < argc; ++i) {
    const std::string text = argv[i];
    if (text.starts_with(name + "=")) return std::stoll(text.substr(name.size() + 1));
  }
  return fallback;
}

}  // namespace

int main(int argc, char** argv) {
  // Large tensors come back from the heap instead of being mapped, and zeroed by the kernel, again each step.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 0x7fffffff);
  const auto threads = argument(argc, argv, "threads", 2), sequences = argument(argc, argv, "sequences", 20);
  const auto prompt = argument(argc, argv, "prompt", 120), options = argument(argc, argv, "options", 4), words = argument(argc, argv, "words", 8);
  const auto rank = argument(argc, argv, "rank", 16), repeats = argument(argc, argv, "repeats", 5);
  const auto dtype = argument(argc, argv, "bf16", 1) != 0 ? at::kBFloat16 : at::kFloat;
  at::set_num_threads(static_cast<int>(threads));

  LlmConfig config;
  config.model_type = "llama";
  config.hidden = 576, config.num_layers = 30, config.num_heads = 9, config.num_kv_heads = 3, config.head_dim = 64, config.intermediate = 1536;
  config.vocab_size = 49152, config.max_positions = 8192, config.rope_theta = 100000, config.norm_eps = 1e-5, config.tied_embeddings = true;
  Llm llm(config, LlmOptions{.dtype = dtype, .trainable = false, .lora = {.rank = rank, .alpha = 0}, .seed = 1});
  torch::manual_seed(1);
  double parameters = 0;
  for (const auto& [name, shape] : config.weight_shapes()) {
    if (shape.size() == 1) {
      llm->set_weight(name, at::ones(shape));
      continue;
    }
    if (name.find("embed") == std::string::npos) parameters += static_cast<double>(shape[0] * shape[1]);
    llm->set_weight(name, at::randn(shape) * 0.03);
  }

  std::vector<AttentionBlock> blocks;
  std::vector<std::int64_t> positions;
  std::int64_t rows = 0;
  for (std::int64_t s = 0; s < sequences; ++s) {
    const auto shared = static_cast<std::int64_t>(blocks.size());
    blocks.push_back({.begin = rows, .end = rows + prompt});
    for (std::int64_t i = 0; i < prompt; ++i) positions.push_back(i);
    rows += prompt;
    for (std::int64_t o = 0; o < options; ++o) {
      blocks.push_back({.begin = rows, .end = rows + words, .parent = shared});
      for (std::int64_t i = 0; i < words; ++i) positions.push_back(prompt + i);
      rows += words;
    }
  }
  const auto positions_T = at::tensor(positions, at::kLong);
  const auto ids_T = at::randint(0, config.vocab_size, {rows}, at::kLong);
  const std::int64_t labelled = std::min<std::int64_t>(8, prompt + options * words);
  auto labels_T = at::full({rows}, -100, at::kLong);
  for (std::int64_t s = 0; s < sequences; ++s) labels_T.narrow(0, (s + 1) * (prompt + options * words) - labelled, labelled).random_(0, config.vocab_size);

  const auto forward = best_of(repeats, [&] {
    const at::NoGradGuard no_grad;
    (void)llm->forward(llm->embed(ids_T), positions_T, blocks);
  });
  const auto step = best_of(repeats, [&] {
    auto x_TH = llm->embed(ids_T).to(at::kFloat).requires_grad_(true);
    auto loss = next_token_loss(*llm, llm->forward(x_TH, positions_T, blocks), labels_T);
    loss.backward();
    for (const auto& [name, p] : llm->trainable_parameters()) p.mutable_grad() = Tensor();
  });
  const auto a = at::randn({rows, 576}).to(dtype), b = at::randn({3072, 576}).to(dtype);
  const auto gemm = best_of(20, [&] { (void)at::mm(a, b.t()); });

  const double tokens = static_cast<double>(rows), forward_flops = 2 * parameters * tokens;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  fmt::print(
      "{{\"tokens\": {}, \"threads\": {}, \"lora_rank\": {}, \"forward_s\": {:.4f}, \"step_s\": {:.4f}, \"forward_gflops_per_s\": {:.1f}, "
      "\"step_gflops_per_s\": {:.1f}, \"forward_cpu_s\": {:.4f}, \"step_cpu_s\": {:.4f}, \"gemm_gflops_per_s\": {:.1f}, \"peak_rss_bytes\": {}}}\n",
      rows, threads, rank, forward.wall_s, step.wall_s, forward_flops / forward.wall_s / 1e9, 2 * forward_flops / step.wall_s / 1e9, forward.cpu_s,
      step.cpu_s, 2.0 * tokens * 576 * 3072 / gemm.wall_s / 1e9, usage.ru_maxrss * 1024);
  return 0;
}
