#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "comm/device.h"
#include "comm/communicator.h"
#include "core/clock.h"
#include "core/random.h"
#include "core/text.h"
#include "launch/bind.h"
#include "launch/collective_bench.h"
#include "launch/command.h"
#include "models/cost.h"
#include "models/loss/item_softmax.h"
#include "models/user_model.h"
#include "trainer/device.h"
#include "trainer/metrics.h"
#include "trainer/optimizer.h"
#include "trainer/pretrain.h"
#include "trainer/run_info.h"
#include "trainer/trained_parameters.h"

namespace uqa::launch {
namespace {

using at::Tensor;

/// Measures one training step of a user encoder on histories of random items: no data set is needed. Lengths are log-normal with
/// the published means (median 170, mean 205), cut at model.max_len.
class BenchCommand final : public Command {
 public:
  BenchCommand() {
    settings_.max_len = 512;
    options_.add("what", &what_, "what to measure: step (encoder pre-training step) or collectives (each op by size)", OptionSet::kRequired);
    options_.set_positional("what");
    options_.add("items", &items_, "rows of the item table (> 1)");
    options_.add("catalogue", &catalogue_, "tables: item (one, of --items rows), or published (the six tables and ten features of UQABench)");
    options_.add("users", &users_, "users of one step on one rank (> 0)");
    options_.add("steps", &steps_, "measured steps, after two that are not; collectives: measured calls of each (> 0)");
    options_.add("dtype", &dtype_, "step: GEMM type of the item softmax; collectives: type of the tensors: float32 or bf16");
    options_.add("seed", &seed_, "random histories and weights");
    options_.add("ops", &ops_, "collectives: which of all_reduce, all_reduce_async, all_gather, reduce_scatter, broadcast, all_to_all, barrier; empty: all");
    options_.add("sizes", &sizes_, "collectives: bytes of the tensors");
    bind_device(options_, device_);
    options_.add("num_threads", &num_threads_, "threads of one rank; 0: cores of the host / ranks on it");
    bind(options_, settings_);
    bind(options_, parallel_);
    bind(options_, call_);
  }
  OptionSet& options() override { return options_; }
  [[nodiscard]] Ranks ranks() const override { return Ranks::kMany; }
  [[nodiscard]] std::string device() const override { return device_; }

  void run(comm::Session* session) override {
    apply(call_);
    const auto& world = session->world();
    comm::run_agreed(world, [&] {
      const std::vector<std::string> known{"step", "collectives"};
      UQA_CHECK(what_ == "step" || what_ == "collectives", ErrorCode::kConfig, "bench {}: unknown, can measure: step, collectives{}", what_, suggestion(what_, known));
      check_given();
      UQA_CHECK(items_ > 1 && users_ > 0 && steps_ > 0, ErrorCode::kConfig, "--items = {}, --users = {}, --steps = {}, must be above 1, 0 and 0", items_,
                users_, steps_);
      UQA_CHECK(catalogue_ == "item" || catalogue_ == "published", ErrorCode::kConfig, "--catalogue = {}, must be item or published", catalogue_);
      parallel_.validate();
      UQA_CHECK(dtype_ == "float32" || dtype_ == "bf16", ErrorCode::kConfig, "--dtype = {}, must be float32 or bf16", dtype_);
    });
    trainer::set_num_threads(num_threads_, world);
    if (what_ == "collectives") return measure_collectives(*session);
    const comm::Mesh mesh(world, static_cast<int>(parallel_.dp), static_cast<int>(parallel_.tp), static_cast<int>(parallel_.table_group));
    const Json record = measure(mesh);
    if (world.rank() == 0) std::printf("%s\n", record.dump().c_str());
  }

 private:
  struct Step {
    models::UserBatch batch;
    Tensor targets_T;
  };

  /// Each of the two has options of its own; one that would change nothing is refused.
  void check_given() const {
    const std::vector<std::string> shared{"what", "steps", "dtype", "num_threads", "device"}, own{"ops", "sizes"};
    const auto is_among = [](const std::vector<std::string>& names, const std::string& name) { return std::find(names.begin(), names.end(), name) != names.end(); };
    for (const auto& name : options_.given()) {
      if (is_among(shared, name) || is_among(own, name) == (what_ == "collectives")) continue;
      UQA_FAIL(ErrorCode::kConfig, "bench {} --{}: has no meaning there; leave it out{}", what_, name,
               what_ == "collectives" ? fmt::format(" (collectives take {}, {})", fmt::join(shared, ", "), fmt::join(own, ", ")) : "");
    }
  }

  void measure_collectives(const comm::Session& session) const {
    const auto& world = session.world();
    std::vector<std::int64_t> sizes;
    comm::run_agreed(world, [&] {
      for (const auto& text : sizes_) {
        const auto bytes = parse_int(text);
        UQA_CHECK(bytes && *bytes > 0, ErrorCode::kConfig, "--sizes = {}, must be whole numbers > 0", text);
        sizes.push_back(*bytes);
      }
      const auto& known = collective_names();
      for (const auto& op : ops_) {
        UQA_CHECK(std::find(known.begin(), known.end(), op) != known.end(), ErrorCode::kConfig, "--ops = {}, must be among {}{}", op, fmt::join(known, ", "), suggestion(op, known));
      }
    });
    const auto type = dtype_ == "bf16" ? at::kBFloat16 : at::kFloat;
    for (const auto& op : ops_.empty() ? collective_names() : ops_) {
      for (const auto bytes : op == "barrier" ? std::vector<std::int64_t>{1} : sizes) {
        const auto measured = measure_collective(op, type, bytes, world, static_cast<int>(steps_), session.world().device());
        if (world.rank() == 0) std::printf("%s\n", measured.to_json().dump().c_str());
      }
    }
  }

  [[nodiscard]] data::Schema schema() const {
    if (catalogue_ == "item") return {.tables = {{"item_id", items_}}, .features = {{"item_id", "item_id", false}}};
    data::Schema schema{.tables = {{"item_id", 994'447}, {"cate_id", 9'330}, {"brand_id", 149'750}, {"shop_id", 268'446}, {"seller_id", 268'446}, {"bpe_tokens", 151'936}},
                        .features = {}};
    for (const auto* name : {"item_id", "cate_id", "brand_id", "shop_id", "seller_id"}) schema.features.push_back({name, name, false});
    for (const auto* name : {"title", "cate", "shop", "brand", "seller"}) schema.features.push_back({fmt::format("{}_bpe_token_ids", name), "bpe_tokens", true});
    return schema;
  }

  /// Random ids of one feature over `rows` interactions; bags have 1 to 8 ids. Uniform ids: as many distinct ones as can be.
  [[nodiscard]] static models::FeatureTensor random_feature(PhiloxStream& random, std::int64_t table_rows, bool bags, std::int64_t rows) {
    std::vector<std::int64_t> ids, offsets{0};
    for (std::int64_t t = 0; t < rows; ++t) {
      for (auto left = bags ? 1 + random.below(8) : 1; left > 0; --left) ids.push_back(static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(table_rows))));
      offsets.push_back(static_cast<std::int64_t>(ids.size()));
    }
    return {torch::tensor(ids, torch::kInt64), bags ? torch::tensor(offsets, torch::kInt64) : Tensor()};
  }

  /// Distinct ids of the batch in each table.
  [[nodiscard]] static std::vector<double> distinct_ids(const models::UserModelConfig& config, const models::UserBatch& batch) {
    std::vector<double> counts;
    for (const auto& table : config.tables) {
      std::vector<Tensor> ids;
      for (std::size_t f = 0; f < config.features.size(); ++f) {
        if (config.features[f].table == table.name) ids.push_back(batch.features[f].values);
      }
      counts.push_back(static_cast<double>(std::get<0>(at::_unique(at::cat(ids))).numel()));
    }
    return counts;
  }

  [[nodiscard]] Step random_step(std::int64_t step, int rank) const {
    PhiloxStream random(mix_key(mix_key(stream_key(static_cast<std::uint64_t>(seed_), "bench"), static_cast<std::uint64_t>(step)), static_cast<std::uint64_t>(rank)));
    Step made;
    std::int64_t rows = 0;
    for (std::int64_t u = 0; u < users_; ++u) {
      const double normal = std::sqrt(-2 * std::log(1 - random.uniform_double())) * std::cos(2 * M_PI * random.uniform_double());
      const auto length = std::clamp<std::int64_t>(std::llround(170 * std::exp(std::sqrt(2 * std::log(205.0 / 170.0)) * normal)), 2, settings_.max_len);
      rows += length;
      made.batch.layout.cu_seqlens.push_back(rows);
      made.batch.layout.sample_ids.push_back(rank * users_ + u);
    }
    const auto tables = schema();
    for (const auto& feature : tables.features) {
      const auto table = std::find_if(tables.tables.begin(), tables.tables.end(), [&](const auto& t) { return t.name == feature.table; });
      made.batch.features.push_back(random_feature(random, table->rows, feature.multi_valued, rows));
    }
    made.targets_T = made.batch.features.front().values.roll(-1);
    return made;
  }

  [[nodiscard]] Json measure(const comm::Mesh& mesh) {
    const auto& world = mesh.world();
    const auto device = mesh.device();
    const auto config = trainer::resolve(settings_, schema());
    models::TableSharding sharding;
    if (parallel_.tables == "sharded") sharding = {.table = mesh.table(), .tp = mesh.tp(), .min_rows = parallel_.table_min_rows};
    models::UserModel model(config, sharding);
    model->init_weights(static_cast<std::uint64_t>(seed_));
    trainer::move_to(*model, device);
    model->train();
    trainer::TrainedParameters trained(trainer::trained_of(*model), {&model->layers()}, mesh, parallel_);
    trainer::Optimizer optimizer(trained.updated(), {});

    std::vector<double> seconds, rates, exposed;
    double loss_nats = 0;
    std::int64_t rows = 0;
    const std::int64_t warmup = 2;
    models::WireShape wire{.ranks = world.size(), .tp = mesh.tp().size(), .table_group = mesh.table().size(), .sharded = parallel_.tables == "sharded",
                           .table_min_rows = parallel_.table_min_rows, .shard = trainer::parse_shard(parallel_.shard), .bf16 = dtype_ == "bf16", .num_labels = 0, .distinct_ids = std::vector<double>(config.tables.size(), 0)};
    const auto mean = [&](double value) { return comm::sum_in_order(value, world) / world.size() / static_cast<double>(steps_ + warmup); };
    std::int64_t table_bytes = 0, dense_bytes = 0;  // of all steps, on this rank
    for (std::int64_t step = 0; step < warmup + steps_; ++step) {
      const auto made = random_step(step, mesh.dp().rank());
      const auto global_rows = comm::all_reduce(made.batch.layout.num_rows(), comm::ReduceOp::kSum, mesh.dp());
      const auto table_before = mesh.table().bytes_sent() + mesh.table_replica().bytes_sent() + mesh.tp().bytes_sent(), dense_before = mesh.dp().bytes_sent();
      comm::barrier(world);
      const auto begin = Clock::now();
      trained.begin_step();
      trained.arm();
      trained.begin_micro_step();
      const auto states_TH = model->forward(trainer::to_device(made.batch, device), {.seed = static_cast<std::uint64_t>(seed_), .step = step, .micro_step = 0});
      const auto loss = models::item_softmax_loss(model->item_hiddens(states_TH), model->item_table(), made.targets_T.to(device), {.bf16 = dtype_ == "bf16"},
                                                  model->item_shards());
      loss.backward();
      trained.end_micro_step();
      double waited_s = trained.finish(1.0 / static_cast<double>(global_rows));
      trained.before_update(1);
      optimizer.step(1e-4);
      waited_s += trained.after_update();
      const double loss_sum = loss.item<double>();  // on a device: once all that was issued is done
      const double took_s = seconds_since(begin);
      table_bytes += mesh.table().bytes_sent() + mesh.table_replica().bytes_sent() + mesh.tp().bytes_sent() - table_before;
      dense_bytes += mesh.dp().bytes_sent() - dense_before;
      wire.num_labels += static_cast<double>(made.batch.layout.num_rows());
      const auto distinct = distinct_ids(config, made.batch);
      for (std::size_t t = 0; t < distinct.size(); ++t) wire.distinct_ids[t] += distinct[t];
      if (step < warmup) continue;
      seconds.push_back(took_s);
      exposed.push_back(waited_s / took_s);
      rates.push_back(static_cast<double>(global_rows) / took_s);
      rows += made.batch.layout.num_rows();
      loss_nats = loss_sum / static_cast<double>(made.batch.layout.num_rows());
    }
    std::sort(seconds.begin(), seconds.end());
    std::sort(rates.begin(), rates.end());
    std::sort(exposed.begin(), exposed.end());
    const double median_s = seconds[seconds.size() / 2];
    const double rows_per_step = static_cast<double>(rows) / static_cast<double>(steps_);
    const double flops = 3 * models::forward_flops(config, rows_per_step, rows_per_step / static_cast<double>(users_)).total();
    const double peak = gemm_peak(device);
    wire.num_labels = mean(wire.num_labels);
    for (auto& count : wire.distinct_ids) count = mean(count);
    const auto formula = models::wire_bytes(config, wire);
    const double mean_table_bytes = mean(static_cast<double>(table_bytes)), mean_dense_bytes = mean(static_cast<double>(dense_bytes));
    Json record{{"bench", "step"},
                {"encoder", config.encoder},
                {"items", items_},
                {"users_per_rank", users_},
                {"ranks", world.size()},
                {"device", comm::describe_device(world)},
                {"threads_per_rank", at::get_num_threads()},
                {"dtype", dtype_},
                {"steps", steps_},
                {"interactions_per_step_and_rank", rows_per_step},
                {"step_s_median", median_s},
                {"step_s_min", seconds.front()},
                {"step_s_max", seconds.back()},
                {"interactions_per_s", rates[rates.size() / 2]},
                {"flops_per_s_and_rank", flops / median_s},
                {"gemm_peak_flops_per_s", peak},
                {"gemm_peak_fraction", flops / median_s / peak},
                {"comm_exposed_fraction", exposed[exposed.size() / 2]},
                {"tables", parallel_.tables},
                {"shard", parallel_.shard},
                {"comm_bytes_per_step_and_rank", {{"tables_and_softmax", mean_table_bytes}, {"dense", mean_dense_bytes}}},
                {"comm_formula_bytes_per_step_and_rank", {{"tables", formula.tables}, {"softmax", formula.softmax}, {"dense", formula.dense}}},
                {"comm_total_bytes_of_rank", mesh.bytes_sent()},
                {"all_reduced_table_bytes_per_step_and_rank", 2 * (world.size() - 1.0) / world.size() * 4 * static_cast<double>(models::count_parameters(config).tables)},
                {"peak_rss_bytes", comm::all_reduce(trainer::peak_rss_bytes(), comm::ReduceOp::kMax, world)},
                {"last_loss_nats", loss_nats}};
    if (!device.is_cpu()) record["peak_device_bytes"] = trainer::peak_device_bytes(device);
    return record;
  }

  /// What the device's GEMM reaches on a square product of the chosen type: the bound that the step is held against.
  [[nodiscard]] double gemm_peak(const at::Device& device) const {
    const at::NoGradGuard no_grad;
    const auto type = dtype_ == "bf16" ? at::kBFloat16 : at::kFloat;
    const std::int64_t n = device.is_cpu() ? 1024 : 8192;
    const auto a = torch::rand({n, n}).to(type).to(device), b = torch::rand({n, n}).to(type).to(device);
    double best = 0;
    for (int i = 0; i < 6; ++i) {
      const auto begin = Clock::now();
      const auto product = at::mm(a, b);
      if (!device.is_cpu()) static_cast<void>(product[0][0].item());  // once it is done
      best = std::max(best, 2.0 * static_cast<double>(n * n * n) / seconds_since(begin));
    }
    return best;
  }

  std::string what_ = "step", dtype_ = "float32", catalogue_ = "item", device_ = "cpu";
  std::vector<std::string> ops_, sizes_{"1024", "1048576", "16777216"};
  std::int64_t items_ = 50'000, users_ = 4, steps_ = 10, seed_ = 1, num_threads_ = 0;
  trainer::UserModelSettings settings_;
  trainer::ParallelConfig parallel_;
  CallSettings call_;
  OptionSet options_{"bench", "measures throughput, memory and FLOPs of one part; prints one JSON line each",
                     "uqa bench step --encoder trm_plus --items 50000 --model.hidden=512 --model.num_layers=4 --model.num_heads=4 --model.item_dim=128"};
};

}  // namespace

std::unique_ptr<Command> make_bench_command() { return std::make_unique<BenchCommand>(); }

}  // namespace uqa::launch
