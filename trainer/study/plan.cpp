#include "trainer/study/plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "core/text.h"
#include "data/import_schema.h"
#include "data/loader.h"
#include "trainer/study/ini.h"
#include "trainer/trained_parameters.h"

namespace uqa::trainer::study {
namespace {

constexpr double kFloat = 4;

/// Ring all-reduce: bytes that one of n ranks sends for `bytes` of payload.
double all_reduce_bytes(double bytes, std::int64_t n) { return 2 * bytes * static_cast<double>(n - 1) / static_cast<double>(n); }

/// Float values that are kept for the backward pass, per row.
struct Kept {
  double layer = 0;    ///< by each layer
  double outside = 0;  ///< of all layers
};
/// Counted from what each encoder's functions save.
Kept kept_per_row(const models::UserModelConfig& c, double mean_length) {
  const auto h = static_cast<double>(c.hidden), heads = static_cast<double>(c.num_heads);
  const auto inner = static_cast<double>(c.resolved_inner());
  const double weights = heads * mean_length;  // attention weights of a row, where they are kept
  if (c.encoder == "sasrec") return {10 * h + 3 * inner + weights, 2 * h};
  if (c.encoder == "trm_plus") return {10 * h + 4 * inner + weights};
  if (c.encoder == "hstu") return {4 * h + 2 * heads * static_cast<double>(2 * c.hstu_linear_dim() + 2 * c.hstu_attention_dim())};
  if (c.encoder == "gru4rec") return {7 * inner, 3 * h};
  const double width = static_cast<double>(c.mamba2.expand) * h;
  return {3 * h + 8 * width + 4 * static_cast<double>(c.mamba2.num_groups * c.mamba2.state_size)};
}

bool recomputes(const LoopConfig& loop) { return loop.memory.recompute == "layers"; }

/// What recomputed layers add to the operations of training: one more forward pass of theirs.
double again_share(const LoopConfig& loop, const models::FlopCounts& flops) {
  return recomputes(loop) && flops.total() > 0 ? (flops.backbone + flops.attention) / flops.total() / 3 : 0;
}

/// Samples of one step on one of `dp` ranks, and the most of them in one forward pass.
struct Passes {
  double users, users_of_pass;
  [[nodiscard]] double count() const { return std::ceil(users / users_of_pass); }
};
Passes passes_of(const BatchConfig& batch, std::int64_t samples, std::int64_t dp) {
  const double users = std::ceil(static_cast<double>(std::min(batch.global_users, samples)) / static_cast<double>(dp));
  return {.users = users, .users_of_pass = batch.micro_users > 0 ? std::min(users, static_cast<double>(batch.micro_users)) : users};
}

/// What data-parallel ranks share out of `shared` bytes of parameters, `in_layers` of them in layers of which the largest has `layer` (parallel.shard).
struct SharedOut {
  models::Shard shard;
  double dp, shared, in_layers, layer;
  [[nodiscard]] bool cuts() const { return shard != models::Shard::kNone && dp > 1; }
  /// Updated by one rank: moments are two such.
  [[nodiscard]] double updated() const { return cuts() ? shared / dp : shared; }
  /// Weights of one rank in a step, and as much for gradients: parts, what is outside of layers, and a layer that runs.
  [[nodiscard]] double held() const { return shard == models::Shard::kFull && dp > 1 ? shared / dp + shared - in_layers + layer : shared; }
  /// Sent by one rank in a step of so many passes.
  [[nodiscard]] double wire(double passes) const {
    const double one_way = (dp - 1) / dp;
    if (!cuts()) return 2 * one_way * shared;
    if (shard == models::Shard::kOptimizer) return 3 * one_way * shared;
    return one_way * (2 * (shared - in_layers) + passes * (3 * in_layers - layer));
  }
  /// Share of it that travels while backward runs.
  [[nodiscard]] double overlapped() const { return !cuts() ? 1 : shard == models::Shard::kOptimizer ? 2.0 / 3.0 : 0; }
};

/// Everything of a layout that depends on it.
struct Cost {
  MemoryPlan memory;
  double wire_bytes = 0, compute_s = 0, comm_s = 0;
  [[nodiscard]] double step_s(double overhead) const { return compute_s + comm_s + overhead; }
};

Cost cost_of(const PretrainConfig& config, const models::UserModelConfig& model, const DataShape& shape, const Hardware& hw, const Layout& layout, double rows_of_step,
             double training_flops_of_step, const models::FlopCounts& by_module) {
  const auto counts = models::count_parameters(model);
  const auto dp = static_cast<double>(layout.dp), tp = static_cast<double>(layout.tp), group = static_cast<double>(layout.table_group);
  const double dense = static_cast<double>(counts.projections + counts.backbone), tables = static_cast<double>(counts.tables);
  const auto passes = passes_of(config.loop.batch, shape.train_users, layout.dp);
  const double rows = rows_of_step / dp, pass = passes.users_of_pass * shape.mean_length;
  // Tables that are cut over a group stay as they are; whole ones are shared out as the rest is, outside of layers.
  const bool cut_tables = layout.table_group > 1;
  const double tables_here = kFloat * tables / group;
  const auto by_layer = models::count_layer_parameters(model);
  const SharedOut out{.shard = parse_shard(config.loop.parallel.shard),
                      .dp = dp,
                      .shared = kFloat * dense / tp + (cut_tables ? 0 : tables_here),
                      .in_layers = kFloat / tp * static_cast<double>(std::accumulate(by_layer.begin(), by_layer.end(), std::int64_t{0})),
                      .layer = kFloat / tp * static_cast<double>(*std::max_element(by_layer.begin(), by_layer.end()))};
  const double cut = cut_tables ? tables_here : 0;
  const double mine = cut + out.updated();  // bytes of the weights that one rank updates
  Cost cost;
  cost.memory.process = hw.process_bytes;
  cost.memory.weights = cut + out.held();
  cost.memory.gradients = cut + out.held();
  cost.memory.optimizer = config.loop.optim.kind == "adamw" ? 2 * mine : 0;
  cost.memory.checkpoint = 2 * mine + cut + (out.shard == models::Shard::kFull ? out.updated() : out.shared);  // the copy that a background thread writes
  // A recomputed layer keeps its input, which tp does not cut; one at a time has the rest.
  const auto kept = kept_per_row(model, shape.mean_length);
  const auto num_layers = static_cast<double>(model.num_layers);
  const double input = static_cast<double>(model.encoder == "gru4rec" ? model.resolved_inner() : model.hidden);
  const double in_layers = recomputes(config.loop) ? kept.layer / tp + num_layers * input : num_layers * kept.layer / tp;
  cost.memory.activations = kFloat * pass * (in_layers + kept.outside / tp + 3 * static_cast<double>(model.feature_width()) +
                                             3 * static_cast<double>(model.hidden) + 4 * static_cast<double>(model.item_dim()));
  // Evaluation holds all weights, but neither whole gradients nor what backward needs.
  cost.memory.weights += std::max(0.0, out.shared + out.updated() - 2 * out.held() - cost.memory.activations);

  const auto rate_of = [&](std::int64_t n) { return n <= hw.ranks_per_node ? hw.node_bytes_per_s : std::min(hw.node_bytes_per_s, hw.network_bytes_per_s); };
  const auto send = [&](double bytes, std::int64_t n, double messages) {
    cost.wire_bytes += bytes;
    return n > 1 ? bytes / rate_of(n) + messages * hw.latency_s * std::ceil(std::log2(static_cast<double>(n))) : 0;
  };
  // Gradients of what is replicated travel while backward runs: two thirds of the compute hides them.
  const double messages = out.shard == models::Shard::kFull ? 3 * passes.count() * num_layers : 2;
  const double dense_s = layout.dp > 1 ? send(out.wire(passes.count()), layout.ranks, messages) : 0;
  const std::int64_t replicas = layout.ranks / layout.table_group;
  const double tables_s = cut_tables && replicas > 1 ? send(all_reduce_bytes(tables_here, replicas), layout.ranks, 2) : 0;
  double exposed = dense_s * (1 - out.overlapped());
  if (layout.table_group > 1) {
    // Rows that are looked up, and their gradients; hiddens of the whole group, their gradients, and three numbers a row for the softmax.
    const double others = group - 1;
    exposed += send(2 * kFloat * rows * static_cast<double>(model.feature_width()) * others / group, layout.table_group, 4);
    exposed += send(kFloat * rows * others * (2 * static_cast<double>(model.item_dim()) + 3) / tp, layout.table_group, 4);
  }
  if (layout.tp > 1) {
    const double sums = num_layers * (recomputes(config.loop) ? 6 : 4);
    exposed += send(sums * all_reduce_bytes(kFloat * rows * static_cast<double>(model.hidden), layout.tp), layout.tp, sums);
  }
  const double per_rank = training_flops_of_step / static_cast<double>(layout.ranks);
  const double measured = hw.measured_rate(model.encoder, training_flops_of_step / rows_of_step);
  const double again = again_share(config.loop, by_module);
  if (measured > 0) {
    cost.compute_s = per_rank * (1 + again) / measured;
  } else {
    const double softmax_share = by_module.item_softmax / by_module.total();
    const double optimizer_s = 7 * mine / hw.memory_bytes_per_s;  // reads weight, gradient and two moments, writes three
    cost.compute_s = per_rank * ((1 - softmax_share + again) / hw.efficiency + softmax_share / hw.softmax_efficiency) / hw.flops_per_s + optimizer_s;
  }
  cost.comm_s = std::max(0.0, dense_s * out.overlapped() + tables_s - 2.0 / 3.0 * cost.compute_s) + exposed;
  return cost;
}

std::vector<Layout> layouts(const models::UserModelConfig& model, const Hardware& hw, std::int64_t ranks) {
  std::vector<Layout> all;
  for (std::int64_t tp = 1; tp <= std::min(ranks, hw.ranks_per_node); tp *= 2) {
    if (ranks % tp != 0 || (tp > 1 && (model.num_heads % tp != 0 || model.encoder == "gru4rec"))) continue;
    for (std::int64_t group = 1; group <= ranks; group *= 2) {
      if (ranks % group == 0) all.push_back({.ranks = ranks, .dp = ranks / tp, .tp = tp, .table_group = group});
    }
    if ((ranks & (ranks - 1)) != 0) all.push_back({.ranks = ranks, .dp = ranks / tp, .tp = tp, .table_group = ranks});
  }
  return all;
}

std::string gib(double bytes) { return bytes_text(static_cast<std::int64_t>(bytes)); }

/// How many ranks would do, by doubling; empty when even 65,536 do not.
std::string more_ranks(const PretrainConfig& config, const models::UserModelConfig& model, const DataShape& shape, const Hardware& hw, std::int64_t ranks, double rows,
                       double flops, const models::FlopCounts& by_module) {
  for (std::int64_t n = 2 * ranks; n <= 65'536; n *= 2) {
    for (const auto& layout : layouts(model, hw, n)) {
      if (cost_of(config, model, shape, hw, layout, rows, flops, by_module).memory.total() <= hw.memory_bytes) {
        return fmt::format("{} ranks would do: {}", n, layout.describe());
      }
    }
  }
  return "no number of ranks helps: lower batch.micro_users or model.max_len, which bound the activations, or set memory.recompute=layers";
}

}  // namespace

std::string Layout::describe() const {
  return fmt::format("dp {}, tp {}, tables {}", dp, tp, table_group == 1 ? "replicated" : fmt::format("in rows over groups of {}", table_group));
}

DataShape shape_of(const PretrainConfig& config) {
  const auto data = data::Dataset::open(config.data, data::ReadMode::kMap, /*verify=*/false);
  auto splits = data::make_splits(data, data::parse_split(config.split), config.model.max_len);
  data::keep_train_fraction(splits, config.fraction, static_cast<std::uint64_t>(config.loop.train.seed));
  DataShape shape{.schema = data.schema(), .lengths = {}, .train_users = static_cast<std::int64_t>(splits.train.size()), .mean_length = 0, .held_out_rows = 0, .exact = true};
  for (const auto& span : splits.train) shape.lengths.push_back(span.end - span.begin - 1);
  shape.mean_length = std::accumulate(shape.lengths.begin(), shape.lengths.end(), 0.0) / static_cast<double>(shape.train_users);
  for (const auto* list : {&splits.valid, &splits.test}) {
    for (const auto& span : *list) shape.held_out_rows += static_cast<double>(span.end - span.begin - 1);
  }
  return shape;
}

DataShape shape_of(const Options& section, const PretrainConfig& config, const std::string& what) {
  std::optional<std::string> schema_file;
  double users = 0, interactions = 0;
  for (const auto& [key, value] : section) {
    const std::string where = fmt::format("{} [data]: {}", what, key);
    if (key == "schema") schema_file = value;
    else if (key == "users") users = ini_positive(value, where);
    else if (key == "interactions") interactions = ini_positive(value, where);
    else UQA_FAIL(ErrorCode::kConfig, "{}: unknown key{}; [data] has schema, users, interactions", where, suggestion(key, {"schema", "users", "interactions"}));
  }
  UQA_CHECK(schema_file && users > 0 && interactions >= 2 * users, ErrorCode::kConfig,
            "{}: data {} is not here, and [data] does not describe it; give schema, users and interactions (at least 2 a user)", what, config.data);
  const auto source = data::SourceSchema::read(*schema_file);
  DataShape shape;
  for (const auto& feature : source.features) {
    const auto rows = source.tables.find(feature.table);
    UQA_CHECK(rows != source.tables.end(), ErrorCode::kConfig, "{}: table '{}' has no rows in 'tables'; a plan needs them", *schema_file, feature.table);
    if (std::none_of(shape.schema.tables.begin(), shape.schema.tables.end(), [&](const auto& t) { return t.name == feature.table; })) {
      shape.schema.tables.push_back({.name = feature.table, .rows = rows->second});
    }
    shape.schema.features.push_back({.name = feature.name, .table = feature.table, .multi_valued = feature.multi_valued});
  }
  const auto spec = data::parse_split(config.split);
  const double share = spec.kind == data::SplitKind::kRatio ? spec.train_share : 1;
  shape.train_users = std::max<std::int64_t>(1, std::llround(users * share * config.fraction));
  shape.mean_length = std::min(interactions / users - 1, static_cast<double>(config.model.max_len));
  shape.held_out_rows = users * (spec.kind == data::SplitKind::kRatio ? 1 - share : 2) * shape.mean_length;
  return shape;
}

StagePlan plan_pretrain(const PretrainConfig& config, const DataShape& shape, const Hardware& hw, std::int64_t ranks, const Layout* only) {
  const auto model = resolve(config.model, shape.schema);
  const auto& loop = config.loop;
  StagePlan plan{.stage = "pretrain", .parameters = models::count_parameters(model), .exact = shape.exact && loop.train.patience == 0};
  const auto per_epoch = data::batches_per_epoch(shape.train_users, loop.batch.global_users);
  plan.steps = loop.train.epochs * per_epoch;
  if (loop.train.max_steps > 0) plan.steps = std::min(plan.steps, loop.train.max_steps);
  if (shape.lengths.empty()) {
    plan.interactions = shape.mean_length * static_cast<double>(shape.train_users) * static_cast<double>(plan.steps) / static_cast<double>(per_epoch);
  } else {
    // Whole epochs see every sample; the order of the last one says which samples its steps take.
    plan.interactions = std::accumulate(shape.lengths.begin(), shape.lengths.end(), 0.0) * static_cast<double>(plan.steps / per_epoch);
    for (auto step = plan.steps / per_epoch * per_epoch; step < plan.steps; ++step) {
      const auto at = data::cursor_at(step, shape.train_users, loop.batch.global_users);
      for (const auto sample : data::global_batch(static_cast<std::uint64_t>(loop.train.seed), at, shape.train_users, loop.batch.global_users)) {
        plan.interactions += static_cast<double>(shape.lengths[static_cast<std::size_t>(sample)]);
      }
    }
  }
  plan.labels = plan.interactions;
  plan.flops = models::forward_flops(model, plan.interactions, shape.mean_length, plan.labels);
  for (auto* part : {&plan.flops.projections, &plan.flops.backbone, &plan.flops.attention, &plan.flops.item_softmax}) *part *= 3;
  const bool attends = model.encoder == "sasrec" || model.encoder == "trm_plus" || model.encoder == "hstu";
  if (attends) plan.full_attention_flops = plan.flops.attention * 2 * shape.mean_length / (shape.mean_length + 1);

  const double rows_of_step = plan.interactions / static_cast<double>(plan.steps), flops_of_step = plan.flops.total() / static_cast<double>(plan.steps);
  std::optional<Cost> best;
  std::optional<Cost> smallest;
  Layout smallest_layout;
  for (const auto& layout : only != nullptr ? std::vector<Layout>{*only} : layouts(model, hw, ranks)) {
    const auto cost = cost_of(config, model, shape, hw, layout, rows_of_step, flops_of_step, plan.flops);
    if (!smallest || cost.memory.total() < smallest->memory.total()) {
      smallest = cost;
      smallest_layout = layout;
    }
    if (cost.memory.total() > hw.memory_bytes || (best && cost.step_s(0) >= best->step_s(0))) continue;
    best = cost;
    plan.layout = layout;
  }
  plan.fits = best.has_value();
  if (!plan.fits) {
    best = smallest;
    plan.layout = smallest_layout;
    plan.advice = fmt::format("{} a rank even with {}, {} has {}; {}", gib(best->memory.total()), plan.layout.describe(), hw.name, gib(hw.memory_bytes),
                              more_ranks(config, model, shape, hw, ranks, rows_of_step, flops_of_step, plan.flops));
  }
  plan.memory = best->memory;
  plan.wire_bytes_per_step = best->wire_bytes;
  const auto steps = static_cast<double>(plan.steps);
  plan.compute_s = best->compute_s * steps;
  plan.exposed_comm_s = best->comm_s * steps;
  // Each epoch validates, the end tests: forward passes, once for ranks and once for the loss.
  const double passes = static_cast<double>(loop.train.epochs) * 0.5 + 0.5;
  const double held_out_s = plan.interactions > 0 ? plan.compute_s / (1 + again_share(loop, plan.flops)) / plan.interactions * shape.held_out_rows * passes * 2 / 3 : 0;
  plan.seconds = best->step_s(hw.step_s) * steps + held_out_s + hw.start_s;
  plan.time_from = hw.measured_rate(model.encoder, 1) > 0 ? "measured" : "hardware figures";
  return plan;
}

StagePlan plan_align(const AlignConfig& config, const AlignShape& shape, const Hardware& hw, std::int64_t ranks) {
  StagePlan plan{.stage = "align", .parameters = shape.encoder};
  const bool llm_frozen = config.freeze.find("llm") != std::string::npos, encoder_frozen = config.freeze.find("encoder") != std::string::npos;
  const bool adapter_frozen = config.freeze.find("adapter") != std::string::npos;
  double matrices = 0, lora = 0;
  const models::LoraOptions lora_options{.rank = config.lora.rank};
  for (const auto& [name, dims] : shape.llm.weight_shapes()) {
    double numel = 1;
    for (const auto dim : dims) numel *= static_cast<double>(dim);
    plan.llm_parameters += static_cast<std::int64_t>(numel);
    if (dims.size() != 2 || !name.starts_with("model.layers.")) continue;
    matrices += numel;
    const bool target = std::any_of(lora_options.targets.begin(), lora_options.targets.end(), [&](const auto& t) { return name.find("." + t + ".") != std::string::npos; });
    if (target && llm_frozen) lora += static_cast<double>(config.lora.rank * (dims[0] + dims[1]));
  }
  plan.lora_parameters = static_cast<std::int64_t>(lora);
  const bool soft = config.prompt == "soft";
  if (soft) {
    const auto adapter = models::make_adapter(config.adapter_config(shape.encoder_hidden, shape.llm.hidden));
    for (const auto& parameter : adapter->parameters()) plan.adapter_parameters += parameter.numel();
  }
  const double per_row = (llm_frozen ? 4.0 : 6.0) * matrices + 6.0 * lora;
  const double used = config.max_questions > 0 ? std::min(shape.questions, static_cast<double>(config.max_questions)) : shape.questions;
  const double epoch_rows = used * (1 - config.validation_fraction) * shape.rows_per_question;
  plan.llm_rows = epoch_rows * static_cast<double>(config.loop.train.epochs);
  const double groups = std::max(1.0, used * (1 - config.validation_fraction));
  plan.steps = config.loop.train.epochs * static_cast<std::int64_t>(std::ceil(groups / static_cast<double>(config.loop.batch.global_users)));
  if (config.loop.train.max_steps > 0 && config.loop.train.max_steps < plan.steps) {
    plan.llm_rows *= static_cast<double>(config.loop.train.max_steps) / static_cast<double>(plan.steps);
    plan.steps = config.loop.train.max_steps;
  }
  plan.llm_flops = per_row * plan.llm_rows;
  plan.layout = {.ranks = ranks, .dp = ranks, .tp = 1, .table_group = 1};
  const double stored = config.loop.train.dtype == "bf16" ? 2 : kFloat;
  double trained = lora + (adapter_frozen ? 0 : static_cast<double>(plan.adapter_parameters)) + (encoder_frozen || !soft ? 0 : static_cast<double>(shape.encoder.total()));
  if (!llm_frozen) trained += static_cast<double>(plan.llm_parameters);
  plan.memory.process = hw.process_bytes;
  // Trained weights of the LLM's layers lie in layers; the encoder's are counted as if they did not.
  const double in_layers = kFloat * (llm_frozen ? lora : matrices);
  const SharedOut out{.shard = parse_shard(config.loop.parallel.shard), .dp = static_cast<double>(ranks), .shared = kFloat * trained, .in_layers = in_layers,
                      .layer = in_layers / static_cast<double>(shape.llm.num_layers)};
  plan.memory.weights = stored * static_cast<double>(plan.llm_parameters) + out.held() + (soft ? kFloat * static_cast<double>(shape.encoder.total()) : 0);
  plan.memory.gradients = out.held();
  plan.memory.optimizer = 2 * out.updated();
  plan.memory.checkpoint = 2 * out.updated() + (out.shard == models::Shard::kFull ? out.updated() : out.shared);
  const auto num_layers = static_cast<double>(shape.llm.num_layers), hidden = static_cast<double>(shape.llm.hidden);
  const double kept = stored * (8 * hidden + 4 * static_cast<double>(shape.llm.intermediate));  // bytes that a layer keeps, a row
  // A recomputed layer keeps the residual stream and what is to be added to it.
  const bool again = recomputes(config.loop);
  plan.memory.activations = static_cast<double>(config.micro_rows) * (again ? kept + num_layers * 2 * kFloat * hidden : num_layers * kept);
  plan.fits = plan.memory.total() <= hw.memory_bytes;
  if (!plan.fits) {
    plan.advice = fmt::format("{} a rank, {} has {}; lower micro_rows, use --train.dtype=bf16, --memory.recompute=layers or --parallel.shard=full, or freeze the LLM", gib(plan.memory.total()), hw.name, gib(hw.memory_bytes));
  }
  // A pass is as many rows as fit.
  const double passes = std::max(1.0, std::ceil(plan.llm_rows / static_cast<double>(plan.steps * ranks * config.micro_rows)));
  plan.wire_bytes_per_step = ranks > 1 ? out.wire(passes) : 0;
  const double forward_share = again ? (2.0 * matrices + 2.0 * lora) / per_row : 0;
  plan.compute_s = plan.llm_flops * (1 + forward_share) / static_cast<double>(ranks) / (hw.efficiency * hw.flops_per_s);
  const double rate = ranks <= hw.ranks_per_node ? hw.node_bytes_per_s : std::min(hw.node_bytes_per_s, hw.network_bytes_per_s);
  plan.exposed_comm_s = ranks > 1 ? std::max(0.0, plan.wire_bytes_per_step / rate * static_cast<double>(plan.steps) - plan.compute_s / 2) : 0;
  plan.seconds = plan.compute_s + plan.exposed_comm_s + hw.step_s * static_cast<double>(plan.steps) + hw.start_s;
  plan.time_from = "hardware figures";
  return plan;
}

Json StagePlan::to_json() const {
  return {{"stage", stage},
          {"parameters", {{"tables", parameters.tables}, {"projections", parameters.projections}, {"backbone", parameters.backbone}, {"total", parameters.total()},
                          {"adapter", adapter_parameters}, {"lora", lora_parameters}, {"llm", llm_parameters}}},
          {"steps", steps},
          {"interactions", interactions},
          {"labels", labels},
          {"llm_rows", llm_rows},
          {"flops", {{"convention", models::kFlopsConvention}, {"projections", flops.projections}, {"backbone", flops.backbone}, {"attention", flops.attention}, {"attention_if_full", full_attention_flops},
                     {"item_softmax", flops.item_softmax}, {"llm", llm_flops}, {"without_softmax", flops.without_softmax() + llm_flops}, {"total", total_flops()}}},
          {"layout", {{"ranks", layout.ranks}, {"dp", layout.dp}, {"tp", layout.tp}, {"table_group", layout.table_group}}},
          {"memory_bytes_per_rank", {{"process", memory.process}, {"weights", memory.weights}, {"gradients", memory.gradients}, {"optimizer", memory.optimizer},
                                     {"activations", memory.activations}, {"checkpoint", memory.checkpoint}, {"total", memory.total()}}},
          {"wire_bytes_per_step_and_rank", wire_bytes_per_step},
          {"compute_s", compute_s},
          {"exposed_comm_s", exposed_comm_s},
          {"seconds", seconds},
          {"time_from", time_from},
          {"exact", exact},
          {"fits", fits},
          {"advice", advice}};
}

}  // namespace uqa::trainer::study
