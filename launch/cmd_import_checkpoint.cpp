#include <cstdio>

#include "launch/bind.h"
#include "launch/command.h"
#include "trainer/import_checkpoint.h"

namespace uqa::launch {
namespace {

class ImportCheckpointCommand final : public Command {
 public:
  ImportCheckpointCommand() {
    options_.add("weights", &config_.weights, "safetensors named as the reference's state_dict (scripts/convert_checkpoint.py makes it)", OptionSet::kRequired);
    options_.add("data", &config_.data, "imported data set whose ids the weights were trained on", OptionSet::kRequired);
    options_.add("run", &config_.run, "run directory to make; align takes it as --encoder-run", OptionSet::kRequired);
    options_.add("adapter", &config_.adapter, "safetensors with the reference's adapter, up_proj.weight and up_proj.bias: align takes the run as --adapter.from, too");
    options_.add("preset", &config_.preset, "where model settings that are not given come from: faithful (the reference's) or default");
    options_.add("ignore", &config_.ignore, "tensors of the file that are left out, such as stored masks; without it any other tensor is an error");
    bind(options_, config_.model);
    bind(options_, call_);
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kSingle; }

  bool parse(const std::vector<std::string>& words) override {
    if (!options_.parse(words)) return false;
    config_.model = trainer::pretrain_preset(config_.preset, config_.model.encoder).model;
    return options_.parse(words);  // what was given goes on top of the preset
  }

  void run(comm::Session*) override {
    apply(call_);
    config_.overwrite = call_.overwrite;
    config_.ini = options_.to_ini();
    std::printf("%s\n", trainer::run_import_checkpoint(config_).dump(2).c_str());
  }

 private:
  trainer::ImportCheckpointConfig config_;
  CallSettings call_;
  OptionSet options_{"import-checkpoint", "makes a run directory from weights of the reference implementation; every tensor's name and shape is checked",
                     "uqa import-checkpoint --weights epoch_3.safetensors --encoder trm_plus --data data/uqabench --run runs/trm-reference"};
};

}  // namespace

std::unique_ptr<Command> make_import_checkpoint_command() { return std::make_unique<ImportCheckpointCommand>(); }

}  // namespace uqa::launch
