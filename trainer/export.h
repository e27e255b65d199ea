// trainer/export.h - a trained run in the formats of other tools: safetensors named as the reference's state_dict, a Hugging Face directory,
// and soft prompts for servers that take prompt embeddings.
//
//   run_export({.run = "runs/align", .output = "exported", .data = "data/ml-100k"});
#pragma once

#include <string>

#include "core/json.h"

namespace uqa::trainer {

struct ExportConfig {
  std::string run;                 ///< run directory of `uqa pretrain` or `uqa align`; required
  std::string output;              ///< directory to make; required
  std::string data;                ///< data set whose users get soft prompts; "": no soft prompts
  std::string dtype = "float32";   ///< type of the Hugging Face weights: "float32" or "bf16"
  bool overwrite = false;
  void validate() const;           ///< Error(kConfig) naming the option
};

/// Writes, whole or not at all:
///   encoder.safetensors, encoder.json  the user encoder, tensors named as the reference's state_dict ("ebc.bags.<table>.weight", ...)
///   adapter.safetensors, adapter.json  of an align run: the adapter ("up_proj.weight", ...)
///   llm/                               of an align run that trained the LLM or LoRA: a directory that stock transformers loads, LoRA merged
///   soft_prompts.safetensors           with `data`: `soft_prompts` float32 [users, tokens, llm width], each user's whole history (its most
///                                      recent max_len interactions); users.txt holds their ids in the same order
///   export.json                        what was written, from which run, digests
/// One rank calls it. Returns what export.json holds. Error(kConfig) for a run that holds nothing to export.
[[nodiscard]] Json run_export(const ExportConfig& config);

}  // namespace uqa::trainer
