#include "trainer/export.h"

#include "core/error.h"
#include "core/log.h"
#include "models/tensor_io.h"
#include "trainer/align.h"
#include "trainer/align_parts.h"

namespace uqa::trainer {
namespace {

void write_user_model(const fs::path& directory, models::UserModelImpl& model) {
  models::save_tensors(directory / "encoder.safetensors", models::state_dict(model), {{"format", "pt"}});
  write_file_atomic(directory / "encoder.json", to_json(model.config()).dump(2) + "\n");
}

/// A Hugging Face directory: the base model's own files with the trained weights.
void write_llm(const fs::path& directory, const AlignedModel& aligned, at::ScalarType dtype) {
  fs::create_directories(directory);
  for (const auto& entry : fs::directory_iterator(aligned.llm_directory)) {
    const auto name = entry.path().filename().string();
    const bool weights = name.ends_with(".safetensors") || name == "model.safetensors.index.json" || name.starts_with("pytorch_model");
    if (entry.is_regular_file() && !weights && !name.starts_with(".")) fs::copy_file(entry.path(), directory / name);
  }
  auto config = read_json(directory / "config.json");
  const std::string type = dtype == at::kBFloat16 ? "bfloat16" : "float32";
  config[config.contains("dtype") ? "dtype" : "torch_dtype"] = type;
  write_file_atomic(directory / "config.json", config.dump(2) + "\n");
  auto tensors = aligned.llm->merge_lora();
  for (auto& [name, tensor] : tensors) tensor = tensor.to(dtype);
  models::save_tensors(directory / "model.safetensors", tensors, {{"format", "pt"}});
}

/// -> [users, tokens, width] of the soft prompts.
std::vector<std::int64_t> write_soft_prompts(const fs::path& directory, const AlignedModel& aligned, const std::string& path) {
  const auto data = select_features(aligned.encoder_config, data::Dataset::open(path));
  std::vector<data::Span> spans;
  std::vector<std::int64_t> users;
  std::string ids;
  for (std::int64_t user = 0; user < data.num_users(); ++user) {
    const auto end = data.length(user);
    spans.push_back({.user = user, .begin = std::max<std::int64_t>(0, end - aligned.encoder_config.max_len), .end = end});
    users.push_back(user);
    ids += std::string(data.raw_user_id(user)) + "\n";
  }
  const auto states = compute_user_states(aligned.encoder, data, spans, aligned.adapter->view(), comm::Communicator());
  const at::NoGradGuard no_grad;
  const auto [states_TH, layout] = states.select(users);
  const auto soft_UKL = aligned.adapter->forward(states_TH, layout);
  models::save_tensors(directory / "soft_prompts.safetensors", {{"soft_prompts", soft_UKL}}, {{"format", "pt"}});
  write_file_atomic(directory / "users.txt", ids);
  return soft_UKL.sizes().vec();
}

}  // namespace

void ExportConfig::validate() const {
  UQA_CHECK(!run.empty(), ErrorCode::kConfig, "run is missing; give --run DIR");
  UQA_CHECK(!output.empty(), ErrorCode::kConfig, "output is missing; give --output DIR");
  UQA_CHECK(dtype == "float32" || dtype == "bf16", ErrorCode::kConfig, "dtype = {}, must be float32 or bf16; change --dtype", dtype);
}

Json run_export(const ExportConfig& config) {
  config.validate();
  const auto model_path = fs::path(config.run) / "model.json";
  UQA_CHECK(fs::exists(model_path), ErrorCode::kConfig, "run = {}, holds no model.json; give the run directory of a finished `uqa pretrain` or `uqa align`",
            config.run);
  const auto format = get<std::string>(read_json(model_path), "format", model_path.string());
  Json written{{"format", "uqa.export"}, {"version", 1}, {"run", fs::absolute(config.run).string()}};
  if (format == "uqa.user_model") {
    UQA_CHECK(config.data.empty(), ErrorCode::kConfig, "data = {} with a pre-training run, soft prompts need an adapter; give an align run or drop --data",
              config.data);
    auto loaded = load_user_model(config.run);
    OutputDir output(config.output, {.kind = "uqa.export", .overwrite = config.overwrite});
    write_user_model(output.path(), *loaded.model);
    written["encoder_digest"] = digest_of(*loaded.model);
    write_file_atomic(output.path() / "export.json", written.dump(2) + "\n");
    output.commit();
    return written;
  }
  const auto aligned = load_aligned(config.run, at::kFloat);
  const auto& llm = aligned.info.at("llm");
  const bool tuned = get<bool>(llm, "trained", model_path.string()) || get<std::int64_t>(llm, "lora_rank", model_path.string()) > 0;
  UQA_CHECK(config.data.empty() || aligned.prompt == "soft", ErrorCode::kConfig,
            "data = {}, but run {} was aligned without a soft token; drop --data or give another --run", config.data, config.run);
  OutputDir output(config.output, {.kind = "uqa.export", .overwrite = config.overwrite});
  if (aligned.prompt == "soft") {
    auto encoder = aligned.encoder;  // shares the module
    write_user_model(output.path(), *encoder);
    write_adapter(output.path(), *aligned.adapter);
    written["encoder_digest"] = digest_of(*aligned.encoder);
    written["prompt_options"] = to_json(aligned.prompt_options);
  }
  if (tuned) {
    write_llm(output.path() / "llm", aligned, config.dtype == "bf16" ? at::kBFloat16 : at::kFloat);
    written["llm"] = "llm";
  } else {
    log::info("export", "the run did not train the LLM: use {} as it is", aligned.llm_directory);
    written["llm"] = aligned.llm_directory;
  }
  if (!config.data.empty()) written["soft_prompts"] = write_soft_prompts(output.path(), aligned, config.data);
  write_file_atomic(output.path() / "export.json", written.dump(2) + "\n");
  output.commit();
  return written;
}

}  // namespace uqa::trainer
