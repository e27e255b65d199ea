// trainer/import_checkpoint.h - a checkpoint of the reference implementation as a run directory that alignment starts from.
//
//   // scripts/convert_checkpoint.py epoch_3.pt weights.safetensors
//   ImportCheckpointConfig config{.weights = "weights.safetensors", .data = "data/uqabench", .run = "runs/trm-reference"};
//   config.model = pretrain_preset("faithful", "trm_plus").model;
//   run_import_checkpoint(config);                                  // then: uqa align --encoder-run runs/trm-reference ...
#pragma once

#include <string>
#include <vector>

#include "core/json.h"
#include "trainer/pretrain.h"

namespace uqa::trainer {

struct ImportCheckpointConfig {
  std::string weights;              ///< safetensors named as the reference's state_dict; required
  std::string data;                 ///< directory written by `uqa import`, whose ids are the ones that the weights were trained on; required
  std::string run;                  ///< run directory to make; required
  std::string adapter = "";         ///< safetensors with the reference's adapter, `up_proj.{weight,bias}`, which align takes as adapter.from; "": none
  std::string preset = "faithful";  ///< where unset model settings come from, recorded in model.json; see pretrain_preset
  UserModelSettings model;          ///< structure of the encoder; every tensor must fit it
  std::vector<std::string> ignore;  ///< names of tensors in the file that the encoder does not have and that are left out on purpose
  std::string ini;                  ///< resolved options, stored as config.ini
  bool overwrite = false;
  void validate() const;            ///< Error(kConfig) naming the option; nothing is opened
};

/// Writes, whole or not at all: model.safetensors (float32), model.json, run.json, config.ini, and with an adapter adapter.safetensors, adapter.json and
/// export.json. One rank calls it. The file must hold every
/// tensor of the encoder in its shape, finite, and no other; the reference's second copy of the item table, `score_head_weight`, may be there
/// if it equals the first. Errors name the tensor and both shapes: Error(kData) for the file, Error(kConfig) for settings and `ignore`.
/// Returns what run.json holds.
[[nodiscard]] Json run_import_checkpoint(const ImportCheckpointConfig& config);

}  // namespace uqa::trainer
