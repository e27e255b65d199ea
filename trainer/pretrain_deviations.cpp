// How a pre-training run differs from the reference. Every id has its row in docs/deviations.md.
#include "trainer/pretrain.h"

namespace uqa::trainer {
namespace {

/// The settings of `config` that are not those of the published scripts: "hidden 64 (512), ...".
std::string other_pretrain_settings(const PretrainConfig& config) {
  const auto published = pretrain_preset("faithful", config.model.encoder);
  std::vector<std::string> list;
  const auto compare = [&](const char* name, const auto& here, const auto& there) {
    if (here != there) list.push_back(fmt::format("{} {} ({})", name, here, there));
  };
  const auto &m = config.model, &p = published.model;
  compare("hidden", m.hidden, p.hidden);
  compare("layers", m.num_layers, p.num_layers);
  if (m.encoder == "sasrec" || m.encoder == "hstu" || m.encoder == "trm_plus") compare("heads", m.num_heads, p.num_heads);
  compare("inner", m.inner, p.inner);
  if (m.encoder == "hstu") {
    compare("hstu.linear_dim", m.hstu.linear_dim, p.hstu.linear_dim);
    compare("hstu.attention_dim", m.hstu.attention_dim, p.hstu.attention_dim);
  }
  if (m.encoder == "mamba2") {
    compare("mamba2.head_dim", m.mamba2.head_dim, p.mamba2.head_dim);
    compare("mamba2.state_size", m.mamba2.state_size, p.mamba2.state_size);
    compare("mamba2.expand", m.mamba2.expand, p.mamba2.expand);
    compare("mamba2.conv_kernel", m.mamba2.conv_kernel, p.mamba2.conv_kernel);
    compare("mamba2.num_groups", m.mamba2.num_groups, p.mamba2.num_groups);
  }
  if (m.encoder == "trm_plus") compare("rope_base", m.rope_base, p.rope_base);
  compare("norm_eps", m.norm_eps, p.norm_eps);
  compare("max_len", m.max_len, p.max_len);
  compare("dropout", m.dropout, p.dropout);
  compare("attention dropout", m.attention_dropout, p.attention_dropout);
  compare("item width", m.item_dim, p.item_dim);
  compare("feature width", m.feature_dim, p.feature_dim);
  compare("table widths", m.dims, p.dims);
  compare("split", config.split, published.split);
  for (auto& setting : differing_settings(config.loop, published.loop)) list.push_back(std::move(setting));
  return fmt::format("{}", fmt::join(list, ", "));
}

}  // namespace

Deviations pretrain_deviations(const PretrainConfig& config, std::size_t features_left_out) {
  Deviations list;
  list.add("packed-histories", "histories are packed end to end; the reference pads each to max_len and computes the padding");
  list.add("streamed-softmax", "the item softmax is streamed over blocks of the catalogue; the reference materialises every logit");
  list.add("seeded-numbers",
           "dropout, data order and initial weights come from counter-based numbers keyed by seed; the reference seeds only Python's random");
  list.add("no-repeated-samples", "batches are drawn for the whole world and split by length, none is repeated; the reference's sampler repeats samples to fill ranks");
  list.add("global-mean", "the loss is the mean over all labels of the global batch; the reference averages the means of its ranks");
  list.add("short-histories", "users with fewer than 2 interactions are left out; the reference fails on them");
  list.add("exact-evaluation",
           "evaluation counts every user once and sums over ranks, ties count half; the reference repeats tail users and averages the means of its ranks");
  const auto& model = config.model;
  if (model.encoder == "sasrec" && !model.sasrec_same_start) {
    list.add("attention-start", "every attention layer has an initial input projection of its own; the reference starts all layers with the same one");
  }
  if (model.encoder == "hstu" && model.hstu.norm != "max_len") {
    list.add("hstu-norm", "attention weights are divided by the history's own length; the reference divides by max_len");
  }
  if (model.encoder == "hstu" && model.hstu.bias != "none") {
    list.add("hstu-bias", fmt::format("the relative attention bias ({}) is on; the reference's never runs, because no timestamps reach it", model.hstu.bias));
  }
  if (features_left_out > 0) list.add("feature-subset", fmt::format("{} features of the data are not seen; the reference uses all", features_left_out));
  if (const auto settings = other_pretrain_settings(config); !settings.empty()) {
    list.add("settings", fmt::format("settings that differ from the published ones (in brackets): {}; `--preset faithful` gives those", settings));
  }
  if (config.loop.train.dtype == "bf16") {
    list.add("precision", "matrix products are bfloat16 with float32 accumulation and master weights; the reference pre-trains in float32 with TF32");
  }
  return list;
}

}  // namespace uqa::trainer
