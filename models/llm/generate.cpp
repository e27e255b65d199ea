#include "models/llm/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/random.h"

namespace uqa::models {
namespace {

constexpr std::int64_t kBlockBytes = 32 << 20;  // logits of one block of rows, float32

/// Uniform in [0, 1) with 53 bits.
double uniform_of(std::uint64_t key, std::uint64_t step) {
  const auto words = philox(key, step);
  return static_cast<double>((static_cast<std::uint64_t>(words[0]) << 32 | words[1]) >> 11) * 0x1p-53;
}

/// One draw a row from softmax(logits / temperature), by inversion in float64.
Tensor draw(const Tensor& logits_MV, double temperature, const Tensor& uniform_M1) {
  const auto scaled_MV = (logits_MV.to(at::kDouble) - logits_MV.amax(1, /*keepdim=*/true).to(at::kDouble)) / temperature;
  const auto cumulative_MV = scaled_MV.exp().cumsum(1);
  const auto last = logits_MV.size(1) - 1;
  const auto target_M1 = uniform_M1 * cumulative_MV.narrow(1, last, 1);
  return at::searchsorted(cumulative_MV, target_M1, /*out_int32=*/false, /*right=*/true).clamp_max(last).squeeze(1);
}

}  // namespace

void GenerateOptions::validate() const {
  UQA_CHECK(max_new_tokens > 0, ErrorCode::kConfig, "max_new_tokens = {}, must be > 0 (1: the first token alone); change --max_new_tokens", max_new_tokens);
  UQA_CHECK(std::isfinite(temperature) && temperature >= 0, ErrorCode::kConfig,
            "temperature = {}, must be a number >= 0 (0: the most likely token); change --temperature", temperature);
}

std::vector<RowRange> rows_seen(const std::vector<AttentionBlock>& blocks, std::int64_t row) {
  const auto own = std::find_if(blocks.begin(), blocks.end(), [&](const auto& block) { return block.begin <= row && row < block.end; });
  UQA_CHECK(own != blocks.end(), ErrorCode::kInternal, "rows_seen: row {} lies in no block", row);
  std::vector<RowRange> ranges{{own->begin, row + 1}};
  for (auto parent = own->parent; parent >= 0; parent = blocks[static_cast<std::size_t>(parent)].parent) {
    const auto& above = blocks[static_cast<std::size_t>(parent)];
    ranges.push_back({above.begin, above.end});
  }
  std::reverse(ranges.begin(), ranges.end());
  return ranges;
}

Tensor next_tokens(LlmImpl& llm, const Tensor& states_BH, const GenerateOptions& options, const std::vector<std::uint64_t>& ids, std::int64_t step) {
  const at::NoGradGuard no_grad;
  const std::int64_t size = states_BH.size(0);
  UQA_CHECK(options.temperature == 0 || static_cast<std::int64_t>(ids.size()) == size, ErrorCode::kInternal, "next_tokens: {} ids for {} states", ids.size(), size);
  if (options.temperature == 0) return llm.greedy_tokens(states_BH);
  auto tokens_B = at::empty({size}, at::kLong);
  const std::int64_t block = std::max<std::int64_t>(1, kBlockBytes / (4 * llm.config().vocab_size));
  const auto key = stream_key(options.seed, "generate");
  for (std::int64_t begin = 0; begin < size; begin += block) {
    const std::int64_t rows = std::min(block, size - begin);
    const auto logits_MV = llm.logits(states_BH.narrow(0, begin, rows));
    UQA_CHECK(logits_MV.isfinite().all().item<bool>(), ErrorCode::kNumeric,
              "a logit of the LLM is not finite; align with a smaller optim.peak_lr, or evaluate with --dtype float32");
    std::vector<double> uniform;
    for (std::int64_t row = begin; row < begin + rows; ++row) {
      uniform.push_back(uniform_of(mix_key(key, ids[static_cast<std::size_t>(row)]), static_cast<std::uint64_t>(step)));
    }
    tokens_B.narrow(0, begin, rows).copy_(draw(logits_MV, options.temperature, at::tensor(uniform, at::kDouble).unsqueeze(1).to(logits_MV.device())));
  }
  return tokens_B;
}

std::vector<std::vector<std::int64_t>> generate(LlmImpl& llm, const GenerateFrom& from, const GenerateOptions& options) {
  const at::NoGradGuard no_grad;
  options.validate();
  const auto size = from.last_rows.size();
  UQA_CHECK(from.states_BH.size(0) == static_cast<std::int64_t>(size), ErrorCode::kInternal, "generate: {} states of {} prompts", from.states_BH.size(0), size);
  std::vector<std::vector<std::int64_t>> answers(size);
  GrowingSequences sequences{.context = from.cache, .seen = {}, .active = std::vector<std::int64_t>(size), .capacity = options.max_new_tokens - 1,
                             .k_BSKD = {}, .v_BSKD = {}};
  std::iota(sequences.active.begin(), sequences.active.end(), std::int64_t{0});
  std::vector<std::int64_t> prompt_length;
  if (options.max_new_tokens > 1) {
    UQA_CHECK(from.cache != nullptr && from.blocks != nullptr, ErrorCode::kInternal, "generate: {} tokens need the prompts' keys and values", options.max_new_tokens);
    for (const auto row : from.last_rows) {
      auto& seen = sequences.seen.emplace_back(rows_seen(*from.blocks, row));
      prompt_length.push_back(std::accumulate(seen.begin(), seen.end(), std::int64_t{0}, [](std::int64_t sum, const auto& r) { return sum + r.end - r.begin; }));
    }
  }
  auto states_AH = from.states_BH;
  for (std::int64_t step = 0; !sequences.active.empty(); ++step) {
    std::vector<std::uint64_t> ids;
    if (options.temperature > 0) {
      for (const auto b : sequences.active) ids.push_back(from.ids.at(static_cast<std::size_t>(b)));
    }
    const auto tokens_A = next_tokens(llm, states_AH, options, ids, step);
    std::vector<std::int64_t> still, tokens, positions;
    for (std::size_t a = 0; a < sequences.active.size(); ++a) {
      const auto b = static_cast<std::size_t>(sequences.active[a]);
      const auto token = tokens_A.const_data_ptr<std::int64_t>()[a];
      answers[b].push_back(token);
      if (step + 1 == options.max_new_tokens || std::ranges::find(options.stop_ids, token) != options.stop_ids.end()) continue;
      still.push_back(sequences.active[a]);
      tokens.push_back(token);
      positions.push_back(prompt_length[b] + step);
    }
    sequences.active = std::move(still);
    if (sequences.active.empty()) break;
    states_AH = llm.forward_next(llm.embed(at::tensor(tokens, at::kLong)).to(at::kFloat), at::tensor(positions, at::kLong), sequences);
  }
  return answers;
}

std::vector<std::int64_t> generate_greedy(LlmImpl& llm, const std::vector<std::int64_t>& prompt, const Tensor& soft_kH,
                                          std::int64_t max_new_tokens, bool stop_at_eos) {
  const at::NoGradGuard no_grad;
  UQA_CHECK(!prompt.empty() || (soft_kH.defined() && soft_kH.size(0) > 0), ErrorCode::kInternal, "generation needs a prompt of at least one row");
  auto x_TH = llm.embed(at::tensor(prompt, at::kLong)).to(at::kFloat);
  if (soft_kH.defined()) x_TH = at::cat({soft_kH.to(at::kFloat), x_TH}, 0);
  const auto rows = x_TH.size(0);
  const std::vector<AttentionBlock> blocks{{.begin = 0, .end = rows}};
  PackedCache cache;
  const auto states_TH = llm.forward(x_TH, at::arange(rows, at::kLong), blocks, &cache);
  GenerateOptions options{.max_new_tokens = max_new_tokens, .stop_ids = {}};
  if (stop_at_eos) options.stop_ids = llm.config().eos_ids;
  return generate(llm, {.cache = &cache, .blocks = &blocks, .last_rows = {rows - 1}, .states_BH = states_TH.narrow(0, rows - 1, 1), .ids = {0}}, options).front();
}

}  // namespace uqa::models
