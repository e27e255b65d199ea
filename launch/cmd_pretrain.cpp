#include <cstdio>

#include "comm/communicator.h"
#include "launch/bind.h"
#include "launch/command.h"
#include "launch/device.h"
#include "launch/stage.h"
#include "launch/study_common.h"
#include "trainer/pretrain.h"

namespace uqa::launch {
namespace {

class PretrainCommand final : public Command {
 public:
  PretrainCommand() {
    options_.add("data", &config_.data, "imported data set (directory of uqa import)", OptionSet::kRequired);
    options_.add("run", &run_, "run directory to make, or to resume", OptionSet::kRequired);
    options_.add("preset", &config_.preset, "where settings that are not given come from: default or faithful (the reference's)");
    options_.add("features", &config_.features, "features of the data that the encoder sees, the item among them; item: no side information; empty: all");
    options_.add("metric", &config_.metric, "validation metric that picks the best epoch: NDCG@k or Recall@k");
    bind(options_, config_.model);
    options_.add("data.split", &config_.split, "leave_one_out, ratio:SHARE[:SEED], time:SECONDS or files:TRAIN,VALID[,TEST]");
    options_.add("data.fraction", &config_.fraction, "share of the training users that is used, in (0, 1]; a smaller one is a subset of a larger one");
    options_.add("data.read", &config_.read, "map or read: how shards are read");
    options_.add("eval.users", &config_.eval_users, "users of one validation pass on one rank (> 0)");
    bind(options_, config_.loop);
    bind_device(options_, device_);
    bind(options_, call_);
  }

  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kMany; }
  [[nodiscard]] bool saves_on_signal() const override { return true; }
  [[nodiscard]] std::string device() const override { return device_; }

  bool parse(const std::vector<std::string>& words) override {
    if (!options_.parse(words)) return false;
    check_device(device_);
    config_ = trainer::pretrain_preset(config_.preset, config_.model.encoder);
    return options_.parse(words);  // what was given goes on top of the preset
  }

  [[nodiscard]] const trainer::PretrainConfig& config() const { return config_; }

  void run(comm::Session* session) override {
    apply(call_);
    comm::run_agreed(session->world(), [&] { config_.validate(); });
    auto stage = open_stage(*session, {.stage = "pretrain", .run = run_, .loop = config_.loop, .call = call_, .ini = options_.to_ini()});
    const Json result = trainer::run_pretrain(config_, stage.mesh, stage.run);
    if (session->world().rank() == 0) std::printf("%s\n", result.dump(2).c_str());
  }

 private:
  trainer::PretrainConfig config_;
  std::string run_, device_ = "cpu";
  CallSettings call_;
  OptionSet options_{"pretrain", "trains a user encoder on next-item prediction with the exact softmax over every item",
                     "mpirun -np 2 uqa pretrain --data data/ml-100k --run runs/trm --encoder trm_plus --train.epochs=30"};
};

}  // namespace

trainer::PretrainConfig parse_pretrain(const std::vector<std::string>& words) {
  PretrainCommand command;
  UQA_CHECK(command.parse(words), ErrorCode::kConfig, "pretrain: --help stands among the options; remove it");
  command.config().validate();
  return command.config();
}

std::unique_ptr<Command> make_pretrain_command() { return std::make_unique<PretrainCommand>(); }

}  // namespace uqa::launch
