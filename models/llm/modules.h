// models/llm/modules.h - what a decoder holds; private to models/llm.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "models/llm/lora.h"

namespace uqa::models {

struct LlmImpl::Modules {
  struct Layer {
    Tensor input_norm_H, attention_norm_H;  ///< float32
    Tensor qkv_bias_C;                      ///< float32, of this rank's heads; undefined without bias
    llm::FusedLinear qkv, out, gate_up, down;
    std::vector<Tensor> trainable;          ///< of those and of what they hold
  };
  std::vector<Layer> layers;
  Tensor embedding_VH;   ///< this rank's rows of the vocabulary; compute type, or a float32 master when trainable
  Tensor head_VH;        ///< the same tensor when tied
  Tensor final_norm_H;   ///< float32
  std::vector<std::pair<std::string, Tensor>> trainable;  ///< fixed order, the same on all ranks
  std::map<std::string, ParameterLayout> layouts;         ///< of those that are parts
};

}  // namespace uqa::models
