#include <cstdio>

#include "data/synth/write.h"
#include "launch/bind.h"
#include "launch/command.h"

namespace uqa::launch {
namespace {

class SynthCommand final : public Command {
 public:
  SynthCommand() {
    auto& c = config_;
    options_.add("users", &c.users, "users (> 0)");
    options_.add("items", &c.items, "items (> 1)");
    options_.add("interactions", &c.interactions, "interactions in all, exactly (>= 2 for each user)");
    options_.add("format", &write_.format, "hdf5: a data directory; arrow: the published layout, for uqa import");
    options_.add("output", &output_, "directory to make", OptionSet::kRequired);
    options_.add("seed", &c.seed, "everything (>= 0)");
    options_.add("features", &c.features, "columns beside the item id: subset of cate,brand,shop,seller,tokens; none: only the item id");
    options_.add("clusters", &c.clusters, "groups of items between which users move; 0: 2 * sqrt(items), at most 512");
    options_.add("categories", &c.categories, "at least clusters; 0: in proportion to the published data");
    options_.add("brands", &c.brands, "0: in proportion to the published data");
    options_.add("shops", &c.shops, "sellers are as many; 0: in proportion to the published data");
    options_.add("token_rows", &c.token_rows, "rows of the table of text tokens; 0: in proportion to the published data");
    options_.add("length_sigma", &c.length_sigma, "of log-normal history lengths, in [0, 3]");
    options_.add("zipf", &c.zipf, "popularity inside a cluster: rank^-zipf");
    options_.add("cluster_zipf", &c.cluster_zipf, "size of clusters: rank^-cluster_zipf");
    options_.add("interest", &c.interest, "share of steps that follow the user's own drifting interests");
    options_.add("transition", &c.transition, "share that follows the clusters of the last items");
    options_.add("rule", &c.rule, "share that follows a rule for the last two clusters; what is left follows popularity");
    options_.add("interest_memory", &c.interest_memory, "interactions after which an interest has faded to 1/e (> 0)");
    options_.add("lags", &c.lags, "items back that transitions reach (> 0)");
    options_.add("lag_power", &c.lag_power, "weight of lag l: l^-lag_power");
    options_.add("spectrum", &c.spectrum, "singular values of the transitions' logits: k^-spectrum");
    options_.add("strength", &c.strength, "standard deviation of those logits");
    options_.add("rule_strength", &c.rule_strength, "the same of the rules' logits");
    options_.add("successor", &c.successor, "share of steps that take the one item that (last item, next cluster) chooses, in [0, 1)");
    options_.add("part_interactions", &write_.part_interactions, "interactions of one shard or record batch: bounds memory, changes no content (> 0)");
    options_.add("oracle_positions", &write_.oracle_positions, "positions that measure entropy and best accuracy; 0: none");
    bind(options_, call_);
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kSingle; }

  void run(comm::Session*) override {
    apply(call_);
    std::erase(config_.features, "none");
    std::erase(config_.features, "");
    write_.output = output_;
    write_.overwrite = call_.overwrite;
    write_.progress = true;
    const Json report = data::synth::write_synth(config_, write_);
    std::printf("%s\n", report.dump(2).c_str());
    if (write_.format == "arrow") {
      const bool published = config_.features.size() == 5;
      std::printf("import: uqa import --schema %s/schema.json --input %s/pretrain_data_train.arrow %s/pretrain_data_eval.arrow %s/items.arrow --output DIR\n%s",
                  output_.c_str(), output_.c_str(), output_.c_str(), output_.c_str(),
                  published ? "        (recipes/uqabench.schema.json reads the two pretrain files as well, without titles and attributes)\n" : "");
    }
  }

 private:
  data::synth::SynthConfig config_;
  data::synth::WriteOptions write_;
  std::string output_;
  CallSettings call_;
  OptionSet options_{"synth", "generates an interaction log of any size with structure at many scales, and says what the best loss and accuracy are",
                     "uqa synth --users 20000 --items 4000 --interactions 2000000 --format hdf5 --output data/synth"};
};

}  // namespace

std::unique_ptr<Command> make_synth_command() { return std::make_unique<SynthCommand>(); }

}  // namespace uqa::launch
