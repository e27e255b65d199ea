#include "trainer/study/points.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <map>
#include <set>

#include "core/csv.h"
#include "core/progress.h"
#include "models/llm/decoder.h"
#include "trainer/fit/accuracy.h"
#include "trainer/result.h"

namespace uqa::trainer::study {
namespace {

/// The last whole line of a file that may grow while it is read.
std::string last_line(const fs::path& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return {};
  const auto size = static_cast<std::int64_t>(file.tellg());
  const auto tail = std::min<std::int64_t>(size, 16'384);
  std::string text(static_cast<std::size_t>(tail), '\0');
  file.seekg(size - tail);
  file.read(text.data(), tail);
  const auto end = text.rfind('\n');
  if (end == std::string::npos) return {};
  const auto begin = text.rfind('\n', end == 0 ? 0 : end - 1);
  return text.substr(begin == std::string::npos ? 0 : begin + 1, end - (begin == std::string::npos ? 0 : begin + 1));
}

using Row = std::vector<std::pair<std::string, std::string>>;

std::string number(double value) { return fmt::format("{}", value); }

const StageCommand* stage_of(const Run& run, const std::string& stage) {
  for (const auto& command : run.stages) {
    if (command.stage == stage) return &command;
  }
  return nullptr;
}

/// What the pre-training in `directory` measured.
void add_pretrain(const fs::path& directory, Row& row) {
  const auto what = [&](const char* name) { return (directory / name).string(); };
  const Json run = read_json(directory / "run.json"), model_json = read_json(directory / "model.json"), result = read_json(directory / "result.json");
  const Json counts = get<Json>(run, "parameters", what("run.json")), data = get<Json>(run, "data", what("run.json"));
  const Json model = get<Json>(model_json, "model", what("model.json"));
  const auto add = [&](const char* column, double value) { row.emplace_back(column, number(value)); };
  row.emplace_back("encoder", get<std::string>(model, "encoder", what("model.json")));
  add("width", get<double>(model, "hidden", what("model.json")));
  add("depth", get<double>(model, "num_layers", what("model.json")));
  add("max_len", get<double>(model, "max_len", what("model.json")));
  add("fraction", get<double>(data, "fraction", what("run.json")));
  add("n_backbone", get<double>(counts, "backbone", what("run.json")));
  add("n_tables", get<double>(counts, "tables", what("run.json")));
  add("n_total", get<double>(counts, "total", what("run.json")));
  const auto interactions = get<double>(result, "interactions", what("result.json")), epochs = get<double>(result, "epochs", what("result.json"));
  const auto flops = get<double>(result, "flops", what("result.json")), labels = get<double>(result, "labels", what("result.json"));
  add("d_interactions", interactions);
  add("d_unique", epochs > 1 ? interactions / epochs : interactions);
  add("c_flops", flops);
  // The softmax is training_per_label without proj2; both are 2 multiply-adds a weight, and training is three times forward.
  const auto features = get<std::vector<Json>>(model, "features", what("model.json")), tables = get<std::vector<Json>>(model, "tables", what("model.json"));
  const auto item_table = get<std::string>(features.at(0), "table", what("model.json"));
  const auto at = std::find_if(tables.begin(), tables.end(), [&](const Json& t) { return get<std::string>(t, "name", what("model.json")) == item_table; });
  UQA_CHECK(at != tables.end(), ErrorCode::kData, "{}: table '{}' of the first feature is missing", what("model.json"), item_table);
  const Json& item = *at;
  add("c_flops_no_softmax", flops - 6 * get<double>(item, "rows", what("model.json")) * get<double>(item, "dim", what("model.json")) * labels);
  const Json test = get_or<Json>(result, "test", Json::object(), what("result.json"));
  const auto metric = get<std::string>(result, "metric", what("result.json"));
  UQA_CHECK(test.contains("loss_nats"), ErrorCode::kData, "{}: there is no test.loss_nats; the split leaves no test users, or the run is of another version",
            what("result.json"));
  add("loss_nats", get<double>(test, "loss_nats", what("result.json")));
  row.emplace_back("metric", number(get<double>(test, metric, what("result.json"))));
}

double llm_parameters(const fs::path& directory) {
  double sum = 0;
  for (const auto& [name, shape] : models::LlmConfig::load(directory).weight_shapes()) {
    double numel = 1;
    for (const auto dim : shape) numel *= static_cast<double>(dim);
    sum += numel;
  }
  return sum;
}

void add_evaluation(const fs::path& directory, Row& row) {
  const auto result = read_result(directory);
  const auto at = result.rules.find(Rule::kText);
  if (at == result.rules.end()) return;
  // A user's questions are correlated: `uqa study fit` widens its intervals by this.
  std::map<std::string, std::vector<std::pair<std::int64_t, bool>>> answers;
  for (const auto& prediction : read_predictions(directory)) {
    const auto judged = prediction.correct.find(Rule::kText);
    if (judged == prediction.correct.end()) continue;
    answers[prediction.type].emplace_back(prediction.user, judged->second);
    answers["all"].emplace_back(prediction.user, judged->second);
  }
  const auto add = [&](const std::string& code, const Accuracy& accuracy) {
    row.emplace_back("acc_" + code, number(accuracy.value()));
    row.emplace_back("acc_" + code + "_n", fmt::format("{}", accuracy.n));
    row.emplace_back("acc_" + code + "_users_effect", number(fit::users_effect(answers[code])));
  };
  for (const auto& [code, accuracy] : at->second.types) add(code, accuracy);
  add("all", at->second.all);
}

}  // namespace

const char* name_of(State state) {
  switch (state) {
    case State::kWaiting: return "waiting";
    case State::kStarted: return "started";
    case State::kFinished: return "finished";
  }
  return "?";
}

StageState state_of(const StageCommand& stage) {
  StageState out;
  std::error_code ec;
  const auto metrics = stage.directory / "metrics.jsonl";
  const Json record = Json::parse(last_line(metrics), nullptr, /*allow_exceptions=*/false);
  if (record.is_object()) {
    out.step = record.value("step", std::int64_t{0});
    out.loss_nats = record.value("loss_nats", 0.0);
  }
  if (fs::exists(stage.directory / "result.json", ec)) {
    out.state = State::kFinished;
    return out;
  }
  if (!fs::exists(stage.directory, ec)) return out;
  out.state = State::kStarted;
  const auto changed = fs::last_write_time(fs::exists(metrics, ec) ? metrics : stage.directory, ec);
  if (!ec) out.idle_s = std::chrono::duration<double>(fs::file_time_type::clock::now() - changed).count();
  return out;
}

bool is_finished(const Run& run) {
  return std::all_of(run.stages.begin(), run.stages.end(), [](const auto& stage) { return state_of(stage).state == State::kFinished; });
}

std::string points_csv(const std::vector<Run>& runs) {
  std::vector<std::string> columns{"name",     "encoder",    "llm",     "adapter",        "tokens",   "width",   "depth",              "max_len",   "fraction", "seed",
                                   "n_llm",    "n_backbone", "n_tables", "n_total", "d_interactions", "d_unique", "c_flops", "c_flops_no_softmax", "loss_nats", "metric"};
  std::vector<Row> rows;
  std::set<std::string> accuracies;
  std::set<std::int64_t> shared;  // pre-trainings that alignments stand for
  for (const auto& run : runs) {
    if (is_finished(run)) shared.insert(run.needs.begin(), run.needs.end());
  }
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const auto& run = runs[i];
    if (!is_finished(run) || shared.contains(static_cast<std::int64_t>(i))) continue;
    const auto* pretrain = stage_of(run, "pretrain");
    if (pretrain == nullptr) pretrain = stage_of(runs.at(static_cast<std::size_t>(run.needs.at(0))), "pretrain");
    Row row{{"name", run.name}};
    for (const char* axis : {"llm", "adapter", "tokens", "seed"}) {
      const auto at = run.values.find(axis);
      if (at != run.values.end()) row.emplace_back(axis, at->second);
    }
    // Runs may outlive the LLM's directory: then the size is left empty.
    if (const auto at = run.values.find("llm"); at != run.values.end() && fs::exists(fs::path(at->second) / "config.json")) {
      row.emplace_back("n_llm", number(llm_parameters(at->second)));
    }
    add_pretrain(pretrain->directory, row);
    if (const auto* evaluate = stage_of(run, "evaluate")) add_evaluation(evaluate->directory, row);
    for (const auto& [column, value] : row) {
      if (column.starts_with("acc_")) accuracies.insert(column);
    }
    rows.push_back(std::move(row));
  }
  columns.insert(columns.end(), accuracies.begin(), accuracies.end());
  std::string text;
  for (std::size_t c = 0; c < columns.size(); ++c) text.append(c > 0 ? "," : "").append(columns[c]);
  text += "\n";
  for (const auto& row : rows) {
    for (std::size_t c = 0; c < columns.size(); ++c) {
      const auto at = std::find_if(row.begin(), row.end(), [&](const auto& cell) { return cell.first == columns[c]; });
      text.append(c > 0 ? "," : "").append(at == row.end() ? "" : csv_field(at->second));
    }
    text += "\n";
  }
  return text;
}

std::string render_status(const std::vector<Run>& runs, std::int64_t* num_finished) {
  std::size_t width = 4;
  for (const auto& run : runs) width = std::max(width, run.name.size());
  std::string text = fmt::format("{:>5}  {:<{}}  {:<9} {:<9} {:>9} {:>9}  {}\n", "index", "run", width, "stage", "state", "step", "loss", "idle");
  std::int64_t finished = 0;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const auto& run = runs[i];
    // The first stage that is not finished is what the run is at.
    const StageCommand* at = &run.stages.back();
    for (const auto& stage : run.stages) {
      if (state_of(stage).state == State::kFinished) continue;
      at = &stage;
      break;
    }
    const auto state = state_of(*at);
    finished += state.state == State::kFinished ? 1 : 0;
    text += fmt::format("{:>5}  {:<{}}  {:<9} {:<9} {:>9} {:>9}  {}\n", i, run.name, width, at->stage, name_of(state.state), state.step > 0 ? fmt::format("{}", state.step) : "-",
                        state.loss_nats > 0 ? fmt::format("{:.4f}", state.loss_nats) : "-", state.state == State::kStarted ? format_duration(state.idle_s) : "");
  }
  text += fmt::format("{} of {} runs finished\n", finished, runs.size());
  if (num_finished != nullptr) *num_finished = finished;
  return text;
}

}  // namespace uqa::trainer::study
