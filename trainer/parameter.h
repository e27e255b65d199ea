// trainer/parameter.h - a trained tensor with its name and its place among the ranks.
#pragma once

#include <string>

#include "models/parallel/layout.h"

namespace uqa::trainer {

using at::Tensor;

struct NamedParameter {
  std::string name;
  Tensor tensor;                        ///< float32, contiguous, requires_grad; this rank's part
  double lr_scale = 1;                  ///< factor of the learning rate
  models::ParameterLayout layout = {};  ///< replicated unless said otherwise
};

}  // namespace uqa::trainer
