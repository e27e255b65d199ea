#include <cstdio>

#include "comm/communicator.h"
#include "data/import/import.h"
#include "launch/bind.h"
#include "launch/command.h"

namespace uqa::launch {
namespace {

class ImportCommand final : public Command {
 public:
  ImportCommand() {
    options_.add("schema", &schema_, "schema file (JSON) that names the columns; see recipes/*.schema.json", OptionSet::kRequired);
    options_.add("input", &inputs_, "interaction and item files, in input order", OptionSet::kRequired);
    options_.add("output", &output_, "data directory to make", OptionSet::kRequired);
    options_.add("shards", &shards_, "HDF5 files to write; 0: one for every 256 MiB of input, at least one a rank");
    bind(options_, call_);
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kMany; }

  void run(comm::Session* session) override {
    apply(call_);
    const auto& world = session->world();
    data::SourceSchema schema;
    comm::run_agreed(world, [&] {
      UQA_CHECK(shards_ >= 0, ErrorCode::kConfig, "--shards = {}, must be 0 or more", shards_);
      schema = data::SourceSchema::read(schema_);
    });
    data::import::ImportOptions import{.output = output_,
                                       .overwrite = call_.overwrite,
                                       .num_shards = static_cast<int>(shards_),
                                       .rank = world.rank(),
                                       .size = world.size(),
                                       .progress = true};
    import.inputs.assign(inputs_.begin(), inputs_.end());
    import.agree = [&](const Error* own) {
      comm::agree_or_throw(world, own == nullptr, own != nullptr ? own->code() : ErrorCode::kData, own != nullptr ? own->what() : "");
    };
    const auto report = data::import::run_import(schema, import);
    if (world.rank() == 0) std::printf("%s\n", report.to_json().dump(2).c_str());
  }

 private:
  std::string schema_, output_;
  std::vector<std::string> inputs_;
  std::int64_t shards_ = 0;
  CallSettings call_;
  OptionSet options_{"import", "turns an interaction log (RecBole, CSV, Parquet, Arrow) into HDF5 shards",
                     "uqa import --schema recipes/ml-100k.schema.json --input ml-100k.inter ml-100k.item --output data/ml-100k"};
};

}  // namespace

std::unique_ptr<Command> make_import_command() { return std::make_unique<ImportCommand>(); }

}  // namespace uqa::launch
