// trainer/align_parts.h - what alignment, its model files and evaluation share; private to trainer/.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/align.h"
#include "trainer/scoring.h"

namespace uqa::trainer {

struct Frozen {
  bool encoder = false, adapter = false, llm = false;
};
/// "encoder,llm" -> flags. Error(kConfig) for an unknown part.
[[nodiscard]] Frozen parse_freeze(const std::string& list);

/// Consecutive groups [begin, end) of prompts with at most `max_rows` rows (one prompt may exceed it alone) and, unless 0, at most
/// `max_prompts` prompts. Depends on the rows alone.
struct Group {
  std::size_t begin = 0, end = 0;
};
[[nodiscard]] std::vector<Group> group_by_rows(const std::vector<std::int64_t>& rows, std::int64_t max_rows, std::int64_t max_prompts = 0);

/// Questions with the same text, as indices.
using QuestionGroup = std::vector<std::size_t>;
/// `indices` in groups of equal text, in order of first appearance; at most 8 in a group, so that one sample stays small.
[[nodiscard]] std::vector<QuestionGroup> groups_by_text(const std::vector<data::Question>& questions, const std::vector<std::size_t>& indices);
/// The members of groups [part.begin, part.end), in order.
[[nodiscard]] std::vector<std::size_t> members_of(const std::vector<QuestionGroup>& groups, const Group& part);

/// Adds, behind `prompts` of `members`, one prompt for each distinct text of theirs: the same question asked about nobody in particular,
/// with the continuations of the first that asks it and the tokens of `reference` (one entry a question of `questions`, kept alive by the
/// caller). Returns for each member the index of its reference prompt.
[[nodiscard]] std::vector<std::int64_t> add_references(std::vector<ScoredPrompt>& prompts, const std::vector<data::Question>& questions,
                                                       const std::vector<std::size_t>& members, const std::vector<EncodedQuestion>& reference);

/// The system text of every training text of the reference.
inline constexpr const char* kReferenceSystem = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";

/// How a run with `config` differs from the reference. `start`: AlignUsers::start(); `system`: the system text of the prompts.
[[nodiscard]] Deviations align_deviations(const AlignConfig& config, const std::string& start, const std::string& system);

/// An adapter that was trained before.
struct GivenAdapter {
  std::string encoder_digest;             ///< of the encoder that it was trained with
  models::AdapterConfig config;
  fs::path weights;                       ///< safetensors file
  std::string prefix;                     ///< of its tensors' names there
};
/// adapter.safetensors and adapter.json of an export.
void write_adapter(const fs::path& directory, const models::AdapterImpl& adapter);
/// From a directory of `uqa export` or `uqa align`. Error(kConfig) where it is not of the structure `wanted` (the LLM's width is not compared),
/// naming both.
[[nodiscard]] GivenAdapter read_given_adapter(const fs::path& directory, const models::AdapterConfig& wanted);
/// Its weights into `adapter`, which must have the same structure; refused (Error(kConfig)) if it was made for another encoder.
void start_from_given(models::AdapterImpl& adapter, const GivenAdapter& given, const std::string& encoder_digest);

[[nodiscard]] Json to_json(const models::AdapterConfig& config);
[[nodiscard]] models::AdapterConfig adapter_config_from_json(const Json& json, const std::string& what);

/// Contiguous share [begin, end) of `costs` for each of `size` parts, about equal in cost.
[[nodiscard]] Group share_of(const std::vector<std::int64_t>& costs, int part, int size);

/// The four letters as continuations of one token, kept alive by `letters`.
using LetterTokens = std::array<std::vector<std::int64_t>, kNumOptions>;
[[nodiscard]] LetterTokens letter_tokens(const PromptEncoder& encoder);

}  // namespace uqa::trainer
