#include "trainer/align_parts.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>
#include <unordered_map>

#include "core/error.h"
#include "core/hash.h"
#include "models/tensor_io.h"

namespace uqa::trainer {
std::vector<Group> group_by_rows(const std::vector<std::int64_t>& rows, std::int64_t max_rows, std::int64_t max_prompts) {
  std::vector<Group> groups;
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const bool full = !groups.empty() && (sum + rows[i] > max_rows ||
                                          (max_prompts > 0 && static_cast<std::int64_t>(groups.back().end - groups.back().begin) >= max_prompts));
    if (groups.empty() || full) {
      groups.push_back({i, i});
      sum = 0;
    }
    sum += rows[i];
    groups.back().end = i + 1;
  }
  return groups;
}

std::vector<QuestionGroup> groups_by_text(const std::vector<data::Question>& questions, const std::vector<std::size_t>& indices) {
  constexpr std::size_t kMost = 8;
  std::vector<QuestionGroup> groups;
  std::unordered_map<std::string_view, std::size_t> open;
  for (const auto q : indices) {
    const auto [found, is_new] = open.try_emplace(questions[q].text, groups.size());
    if (!is_new && groups[found->second].size() < kMost) {
      groups[found->second].push_back(q);
      continue;
    }
    found->second = groups.size();
    groups.push_back({q});
  }
  return groups;
}

std::vector<std::size_t> members_of(const std::vector<QuestionGroup>& groups, const Group& part) {
  std::vector<std::size_t> members;
  for (auto g = part.begin; g < part.end; ++g) members.insert(members.end(), groups[g].begin(), groups[g].end());
  return members;
}

std::vector<std::int64_t> add_references(std::vector<ScoredPrompt>& prompts, const std::vector<data::Question>& questions,
                                         const std::vector<std::size_t>& members, const std::vector<EncodedQuestion>& reference) {
  UQA_CHECK(prompts.size() == members.size(), ErrorCode::kInternal, "add_references: {} prompts of {} questions", prompts.size(), members.size());
  std::unordered_map<std::string_view, std::int64_t> of_text;
  std::vector<std::int64_t> reference_of;
  for (std::size_t i = 0; i < members.size(); ++i) {
    const auto [found, is_new] = of_text.try_emplace(questions[members[i]].text, static_cast<std::int64_t>(prompts.size()));
    if (is_new) prompts.push_back({.prompt = &reference[members[i]], .continuations = prompts[i].continuations});
    reference_of.push_back(found->second);
  }
  return reference_of;
}

Group share_of(const std::vector<std::int64_t>& costs, int part, int size) {
  const auto total = std::accumulate(costs.begin(), costs.end(), std::int64_t{0});
  // Entry i belongs to the part in which its middle lies.
  const auto part_of = [&](std::int64_t middle_twice) {
    return total == 0 ? 0 : std::min<std::int64_t>(size - 1, middle_twice * size / (2 * total));
  };
  Group share{costs.size(), costs.size()};
  std::int64_t before = 0;
  for (std::size_t i = 0; i < costs.size(); ++i) {
    const auto owner = part_of(2 * before + costs[i]);
    before += costs[i];
    if (owner >= part) share.begin = std::min(share.begin, i);
    if (owner > part) share.end = std::min(share.end, i);
  }
  return share;
}

LetterTokens letter_tokens(const PromptEncoder& encoder) {
  LetterTokens letters;
  for (std::size_t i = 0; i < kNumOptions; ++i) letters[i] = {encoder.letter_ids()[i]};
  return letters;
}

std::vector<data::Span> encoder_spans(const std::vector<data::Question>& questions, std::int64_t max_len, std::int64_t* num_cut) {
  std::vector<data::Span> spans;
  std::int64_t cut = 0;
  for (const auto& question : questions) {
    const std::int64_t begin = std::max(question.begin, question.end - max_len);
    cut += begin > question.begin ? 1 : 0;
    spans.push_back({.user = question.user, .begin = begin, .end = question.end});
  }
  if (num_cut != nullptr) *num_cut = cut;
  return spans;
}

void check_same_schema(const models::UserModelConfig& encoder, const data::Schema& schema) {
  UQA_CHECK(encoder.features.size() == schema.features.size(), ErrorCode::kConfig,
            "the data set has {} features and the encoder was trained on {}; give the data set that it was trained on", schema.features.size(),
            encoder.features.size());
  for (std::size_t i = 0; i < encoder.features.size(); ++i) {
    const auto& a = encoder.features[i];
    const auto& b = schema.features[i];
    UQA_CHECK(a.name == b.name && a.table == b.table, ErrorCode::kConfig,
              "feature {} of the data set is {} of table {}, the encoder was trained on {} of table {}; give the data set that it was trained on", i,
              b.name, b.table, a.name, a.table);
  }
  for (const auto& table : encoder.tables) {
    UQA_CHECK(schema.table(table.name).rows == table.rows, ErrorCode::kConfig,
              "table {} of the data set has {} rows, the encoder's has {}; give the data set that it was trained on", table.name,
              schema.table(table.name).rows, table.rows);
  }
}

data::Dataset select_features(const models::UserModelConfig& encoder, const data::Dataset& data) {
  std::vector<std::string> names, known;
  for (const auto& feature : data.schema().features) known.push_back(feature.name);
  for (const auto& feature : encoder.features) {
    UQA_CHECK(std::find(known.begin(), known.end(), feature.name) != known.end(), ErrorCode::kConfig,
              "the encoder was trained on feature {}, the data set has {}; give the data set that it was trained on", feature.name, fmt::join(known, ", "));
    names.push_back(feature.name);
  }
  auto selected = data.with_features(names);
  check_same_schema(encoder, selected.schema());
  return selected;
}

std::string digest_of(const torch::nn::Module& module) {
  std::string text;
  for (const auto& [name, tensor] : models::state_dict(module)) {
    const auto values = tensor.detach().to(at::kCPU).contiguous();
    const auto* bytes = static_cast<const std::byte*>(values.const_data_ptr());
    text += fmt::format("{} {} {} {}\n", name, c10::toString(values.scalar_type()), fmt::join(values.sizes(), "x"), hash_hex(std::span(bytes, values.nbytes())));
  }
  return hash_hex(text);
}

std::string digest_of_llm(const fs::path& directory) {
  UQA_CHECK(fs::is_directory(directory), ErrorCode::kConfig, "llm = {}, must be a Hugging Face directory; change --llm", directory.string());
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const auto name = entry.path().filename().string();
    if (name.ends_with(".safetensors") || name == "config.json" || name == "tokenizer.json") files[name] = hash_file(entry.path());
  }
  std::string text;
  for (const auto& [name, digest] : files) text += name + " " + digest + "\n";
  return hash_hex(text);
}

}  // namespace uqa::trainer
