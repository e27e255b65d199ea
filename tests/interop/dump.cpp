// What an align run computes, for comparison with what other tools make of its export: soft tokens, logits, greedy tokens.
//
//   uqa_interop_dump RUN OUTPUT.safetensors
//
// The questions are the run's test questions and, behind them, the first ones again about the whole history, which is what `uqa export`
// writes soft prompts of. The files hold, Q questions: `user`, `begin`, `end`, `length` int64 [Q], `pooled` [Q, H] (mean encoder states),
// `soft` [Q, K, L], and for the questions of which `logits_of` has the index i: `i.ids` (prompt without the soft rows), `i.logits` [T, V] (all
// rows, soft rows in front), `i.greedy` (continuation with the KV cache).
#include <algorithm>
#include <cstdio>

#include "core/error.h"
#include "models/tensor_io.h"
#include "trainer/align.h"
#include "trainer/prompt.h"

namespace uqa::trainer {
namespace {

constexpr std::size_t kWithLogits = 6;     // of the test questions, and as many about whole histories
constexpr std::int64_t kNewTokens = 12;

void dump(const fs::path& run, const fs::path& output) {
  const at::NoGradGuard no_grad;
  auto aligned = load_aligned(run, at::kFloat);
  const auto data = data::Dataset::open(aligned.data);
  const auto set = data::read_questions(aligned.questions);
  auto questions = set.test;
  const auto num_test = questions.size();
  for (std::size_t i = 0; i < kWithLogits; ++i) {
    auto whole = set.test.at(i);
    whole.begin = 0;
    whole.end = data.length(whole.user);
    questions.push_back(whole);
  }
  const PromptEncoder encoder(aligned.llm_directory, set.language, aligned.prompt_options);
  const auto encoded = encoder.encode_all(questions, Prompt::kSoft);
  const auto spans = encoder_spans(questions, aligned.encoder_config.max_len);
  const auto states = compute_user_states(aligned.encoder, data, spans, aligned.adapter->view(), comm::Communicator());
  UQA_CHECK(states.view == models::StateView::kMean, ErrorCode::kConfig, "adapter = {}, must look at mean states to be compared", aligned.adapter->config().kind);
  std::vector<std::int64_t> indices, users, begins, ends, lengths, logits_of;
  for (std::size_t i = 0; i < questions.size(); ++i) {
    indices.push_back(static_cast<std::int64_t>(i));
    users.push_back(spans[i].user);
    begins.push_back(spans[i].begin);
    ends.push_back(spans[i].end);
    lengths.push_back(data.length(spans[i].user));
    if (i < kWithLogits || i >= num_test) logits_of.push_back(static_cast<std::int64_t>(i));
  }
  const auto [pooled_QH, layout] = states.select(indices);
  const auto soft_QKL = aligned.adapter->forward(pooled_QH, layout);
  std::map<std::string, at::Tensor> tensors{{"user", at::tensor(users, at::kLong)},     {"begin", at::tensor(begins, at::kLong)},
                                            {"end", at::tensor(ends, at::kLong)},       {"length", at::tensor(lengths, at::kLong)},
                                            {"logits_of", at::tensor(logits_of, at::kLong)}, {"pooled", pooled_QH},
                                            {"soft", soft_QKL}};
  for (const auto i : logits_of) {
    const auto& question = encoded[static_cast<std::size_t>(i)];
    UQA_CHECK(question.soft_index == 0, ErrorCode::kConfig, "prompt.place = {}, must be before to be compared", aligned.prompt_options.place);
    const std::vector<std::int64_t> ids(question.prompt.begin() + question.num_soft, question.prompt.end());
    const auto ids_T = at::tensor(ids, at::kLong);
    const auto x_TL = at::cat({soft_QKL[i], aligned.llm->embed(ids_T).to(at::kFloat)});
    const std::vector<models::AttentionBlock> blocks{{.begin = 0, .end = x_TL.size(0)}};
    const auto name = std::to_string(i);
    tensors[name + ".ids"] = ids_T;
    tensors[name + ".logits"] = aligned.llm->logits(aligned.llm->forward(x_TL, at::arange(x_TL.size(0), at::kLong), blocks));
    tensors[name + ".greedy"] = at::tensor(models::generate_greedy(*aligned.llm, ids, soft_QKL[i], kNewTokens, /*stop_at_eos=*/false), at::kLong);
  }
  models::save_tensors(output, tensors);
  std::printf("%s: %zu questions, logits of %zu\n", output.c_str(), questions.size(), logits_of.size());
}

}  // namespace
}  // namespace uqa::trainer

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: uqa_interop_dump RUN OUTPUT.safetensors\n");
    return static_cast<int>(uqa::ErrorCode::kConfig);
  }
  try {
    uqa::trainer::dump(argv[1], argv[2]);
    return 0;
  } catch (const uqa::Error& error) {
    std::fprintf(stderr, "uqa_interop_dump: %s\n", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "uqa_interop_dump: %s\n", error.what());
    return static_cast<int>(uqa::ErrorCode::kInternal);
  }
}
