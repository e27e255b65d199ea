// The real SmolLM2-135M-Instruct, fetched and converted by set-up, against transformers in float32.

#include <gtest/gtest.h>

#include "models/llm/decoder.h"
#include "models/tensor_io.h"
#include "tests/golden/llm/packed_cases.h"
#include "tests/support/source_dir.h"

namespace uqa::models {
namespace {

TEST(SmolLm2Golden, TopLogitsAndGreedyTokensMatchTransformers) {
  const fs::path model = tests::source_dir() / "third_party/smollm2-135m-instruct";
  ASSERT_TRUE(fs::exists(model / "config.json")) << model << " is missing: run scripts/setup.sh --models";
  const auto tensors = load_tensors(golden::fixtures() / "llm" / "smollm2-135m.case.safetensors");
  auto llm = load_llm(model, {});
  const at::NoGradGuard no_grad;
  std::int64_t num_cases = 0;
  for (; tensors.contains(fmt::format("{}.ids", num_cases)); ++num_cases) {
    const auto at_key = [&](const char* key) { return tensors.at(fmt::format("{}.{}", num_cases, key)); };
    const auto ids_T = at_key("ids");
    const auto rows = ids_T.numel();
    const auto states_TH = llm->forward(llm->embed(ids_T), at::arange(rows, at::kLong), {{.begin = 0, .end = rows}});
    const auto logits_V = llm->logits(states_TH.narrow(0, rows - 1, 1)).squeeze(0);
    EXPECT_LT(golden::relative_error(logits_V.index_select(0, at_key("top_ids")), at_key("top_logits")), 1e-3) << "prompt " << num_cases;
    EXPECT_EQ(logits_V.argmax().item<std::int64_t>(), at_key("top_ids")[0].item<std::int64_t>());

    const auto expected = at_key("generated");
    const auto* p = ids_T.data_ptr<std::int64_t>();
    const auto* e = expected.data_ptr<std::int64_t>();
    EXPECT_EQ(generate_greedy(*llm, {p, p + rows}, Tensor(), 16), std::vector<std::int64_t>(e, e + expected.numel())) << "prompt " << num_cases;
  }
  EXPECT_GT(num_cases, 0);
}

}  // namespace
}  // namespace uqa::models
