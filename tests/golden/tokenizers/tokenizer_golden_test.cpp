// Ids and decoded texts of every fixtures/tokenizers/*.jsonl, made by the `tokenizers` library.
#include <fstream>
#include <vector>

#include <gtest/gtest.h>

#include "core/json.h"
#include "models/format/tokenizer.h"
#include "tests/support/fixtures.h"
#include "tests/support/source_dir.h"

namespace uqa::format {
namespace {

/// The tokenizer.json that belongs to fixtures/tokenizers/<name>.jsonl.
fs::path tokenizer_of(const std::string& name) {
  const fs::path fixtures = tests::fixtures();
  for (const auto& path : {fixtures / "tokenizers" / name / "tokenizer.json", fixtures / "llm" / name / "tokenizer.json"}) {
    if (fs::exists(path)) return path;
  }
  const fs::path made = tests::source_dir() / "third_party" / "smollm2-135m-instruct" / "tokenizer.json";
  if (name == "smollm2" && fs::exists(made)) return made;
  UQA_FAIL(ErrorCode::kData, "no tokenizer.json for {}.jsonl in {}{}", name, fixtures.string(),
           name == "smollm2" ? "; run scripts/setup.sh --models" : "");
}

void expect_same_tokens(const fs::path& cases) {
  SCOPED_TRACE(cases.string());
  const Tokenizer tokenizer = Tokenizer::load(tokenizer_of(cases.stem().string()));
  std::ifstream lines(cases);
  std::string line;
  std::size_t num_cases = 0, num_ids = 0;
  while (std::getline(lines, line)) {
    if (line.empty()) continue;
    const Json record = parse_json(line, cases.string());
    const auto text = get<std::string>(record, "text", cases.string());
    const auto ids = get<std::vector<std::int64_t>>(record, "ids", cases.string());
    ++num_cases;
    EXPECT_EQ(tokenizer.encode(text), ids) << "text " << num_cases << ": " << text;
    EXPECT_EQ(tokenizer.decode(ids), get<std::string>(record, "decoded", cases.string())) << text;
    num_ids += ids.size();
  }
  EXPECT_GT(num_cases, 0u);
  EXPECT_GT(num_ids, 0u);
}

TEST(TokenizerGolden, EveryTextHasTheLibrarysIdsAndDecodedText) {
  const fs::path folder = tests::fixtures() / "tokenizers";
  ASSERT_TRUE(fs::is_directory(folder)) << folder;
  std::size_t num_files = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".jsonl") continue;
    ++num_files;
    expect_same_tokens(entry.path());
  }
  EXPECT_GT(num_files, 0u) << "no .jsonl file in " << folder;
}

}  // namespace
}  // namespace uqa::format
