#include <cstdio>

#include "launch/bind.h"
#include "launch/command.h"
#include "core/error.h"
#include "trainer/export.h"
#include "trainer/export_tensorboard.h"

namespace uqa::launch {
namespace {

class ExportCommand final : public Command {
 public:
  ExportCommand() {
    options_.add("run", &config_.run, "run directory of uqa pretrain or uqa align", OptionSet::kRequired);
    options_.add("output", &config_.output, "directory to make", OptionSet::kRequired);
    options_.add("data", &config_.data, "data set whose users get soft prompts (safetensors [users, tokens, LLM width]); empty: none");
    options_.add("dtype", &config_.dtype, "type of the Hugging Face weights, float32 or bf16");
    options_.add("tensorboard", &tensorboard_, "write metrics.jsonl as TensorBoard event files, and nothing else");
    bind(options_, call_);
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kSingle; }

  void run(comm::Session*) override {
    apply(call_);
    config_.overwrite = call_.overwrite;
    if (tensorboard_) {
      for (const auto& name : options_.given()) {
        UQA_CHECK(name != "data" && name != "dtype", ErrorCode::kConfig, "--{} has no part in --tensorboard, which writes metrics alone; drop one of them", name);
      }
      const auto result = trainer::write_tensorboard(config_.run, config_.output, call_.overwrite);
      std::printf("%s\n", Json{{"format", "uqa.tensorboard"}, {"output", config_.output}, {"records", result.records}, {"scalars", result.scalars}}.dump(2).c_str());
      return;
    }
    std::printf("%s\n", trainer::run_export(config_).dump(2).c_str());
  }

 private:
  trainer::ExportConfig config_;
  bool tensorboard_ = false;
  CallSettings call_;
  OptionSet options_{"export", "writes a run for other tools: encoder and adapter as safetensors, the tuned LLM as a Hugging Face directory, users' soft prompts",
                     "uqa export --run runs/align --output exported --data data/ml-100k"};
};

}  // namespace

std::unique_ptr<Command> make_export_command() { return std::make_unique<ExportCommand>(); }

}  // namespace uqa::launch
