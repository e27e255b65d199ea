#include <cstdio>

#include "data/inspect.h"
#include "launch/command.h"

namespace uqa::launch {
namespace {

class InspectCommand final : public Command {
 public:
  InspectCommand() {
    options_.add("path", &path_, "data set, shard, question set, run or checkpoint", OptionSet::kRequired);
    options_.set_positional("path");
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kSingle; }
  void run(comm::Session*) override { std::printf("%s", data::inspect(path_).c_str()); }

 private:
  std::string path_;
  OptionSet options_{"inspect", "prints what a data set, question set, run or file holds", "uqa inspect data/ml-100k"};
};

}  // namespace

std::unique_ptr<Command> make_inspect_command() { return std::make_unique<InspectCommand>(); }

}  // namespace uqa::launch
