// The aligned model on disk: model.safetensors (what was trained) and model.json (how, and from which encoder and LLM).
#include "core/error.h"
#include "core/log.h"
#include "models/tensor_io.h"
#include "trainer/align.h"
#include "trainer/align_parts.h"
#include "trainer/device.h"

namespace uqa::trainer {
namespace {

/// Copies every tensor of `stored` whose name begins with `prefix`, or this rank's part of it, into `parameters`; both must have the same names
/// and whole shapes.
void copy_in(const std::map<std::string, Tensor>& stored, const std::string& prefix, const std::map<std::string, Tensor>& parameters,
             const std::string& what, const std::map<std::string, models::ParameterLayout>& layouts = {}) {
  const at::NoGradGuard no_grad;
  std::size_t used = 0;
  for (const auto& [name, parameter] : parameters) {
    const auto found = stored.find(prefix + name);
    UQA_CHECK(found != stored.end(), ErrorCode::kData, "{}: tensor {} is missing; align again", what, prefix + name);
    const auto layout = layouts.contains(name) ? layouts.at(name) : models::ParameterLayout{};
    const auto shape = models::global_shape_of(parameter, layout);
    UQA_CHECK(found->second.sizes() == at::IntArrayRef(shape), ErrorCode::kData, "{}: tensor {} is [{}], must be [{}]; align again", what, prefix + name,
              fmt::join(found->second.sizes(), ", "), fmt::join(shape, ", "));
    parameter.copy_(models::part_of(found->second, layout));
    ++used;
  }
  std::size_t present = 0;
  for (const auto& [name, tensor] : stored) present += name.starts_with(prefix) ? 1 : 0;
  UQA_CHECK(present == used, ErrorCode::kData, "{}: {} tensors begin with {}, {} belong to the model; align again", what, present, prefix, used);
}

std::map<std::string, Tensor> by_name(const std::vector<std::pair<std::string, Tensor>>& parameters) {
  return {parameters.begin(), parameters.end()};
}

}  // namespace

Json to_json(const models::AdapterConfig& config) {
  return {{"kind", config.kind}, {"encoder_hidden", config.encoder_hidden}, {"llm_hidden", config.llm_hidden}, {"tokens", config.num_tokens},
          {"inner", config.inner}, {"layers", config.num_layers}, {"heads", config.num_heads}};
}

models::AdapterConfig adapter_config_from_json(const Json& json, const std::string& what) {
  models::AdapterConfig config{.kind = get<std::string>(json, "kind", what),
                               .encoder_hidden = get<std::int64_t>(json, "encoder_hidden", what),
                               .llm_hidden = get<std::int64_t>(json, "llm_hidden", what),
                               .num_tokens = get<std::int64_t>(json, "tokens", what),
                               .inner = get<std::int64_t>(json, "inner", what),
                               .num_layers = get<std::int64_t>(json, "layers", what),
                               .num_heads = get<std::int64_t>(json, "heads", what)};
  config.validate();
  return config;
}

namespace {

/// model.json's facts that loading goes by.
struct AlignedFacts {
  std::map<std::string, Tensor> tensors;
  models::LlmOptions llm_options;
};

AlignedFacts read_facts(AlignedModel& aligned, const fs::path& run_directory, std::optional<at::ScalarType> dtype) {
  const fs::path json_path = run_directory / "model.json", weights_path = run_directory / "model.safetensors";
  UQA_CHECK(fs::exists(json_path), ErrorCode::kConfig, "run = {}, holds no model.json; give the run directory of a finished `uqa align`",
            run_directory.string());
  const std::string what = json_path.string();
  aligned.info = read_json(json_path);
  UQA_CHECK(get<std::string>(aligned.info, "format", what) == "uqa.aligned", ErrorCode::kConfig,
            "run = {}, holds a model of another stage; give the run directory of `uqa align`", run_directory.string());
  aligned.prompt_options = prompt_options_from_json(get<Json>(aligned.info, "prompt_options", what), what);
  aligned.prompt = get<std::string>(aligned.info, "prompt", what);
  aligned.data = get<std::string>(aligned.info, "data", what);
  aligned.questions = get<std::string>(aligned.info, "questions", what);

  const auto llm = get<Json>(aligned.info, "llm", what);
  aligned.llm_directory = get<std::string>(llm, "path", what);
  UQA_CHECK(digest_of_llm(aligned.llm_directory) == get<std::string>(llm, "digest", what), ErrorCode::kData,
            "LLM {} has changed since {} was aligned with it; restore it or align again", aligned.llm_directory, run_directory.string());
  const auto trained_dtype = get<std::string>(aligned.info, "dtype", what) == "bf16" ? at::kBFloat16 : at::kFloat;
  return {.tensors = models::load_tensors(weights_path),
          .llm_options = {.dtype = dtype.value_or(trained_dtype),
                          .trainable = get<bool>(llm, "trained", what),
                          .lora = {.rank = get<std::int64_t>(llm, "lora_rank", what), .alpha = get<double>(llm, "lora_alpha", what)}}};
}

/// The whole encoder and the adapter.
void load_user_side(AlignedModel& aligned, const std::map<std::string, Tensor>& tensors, const fs::path& run_directory) {
  const fs::path weights_path = run_directory / "model.safetensors";
  const std::string what = (run_directory / "model.json").string();
  const auto encoder = get<Json>(aligned.info, "encoder", what);
  const bool tuned = get<bool>(encoder, "trained", what);
  aligned.encoder_config = user_model_config_from_json(get<Json>(encoder, "model", what), what);
  if (tuned) {
    aligned.encoder = models::UserModel(aligned.encoder_config);
    copy_in(tensors, "encoder.", models::state_dict(*aligned.encoder), weights_path.string());
  } else {
    const auto path = get<std::string>(encoder, "path", what);
    aligned.encoder = load_user_model(path).model;
    UQA_CHECK(digest_of(*aligned.encoder) == get<std::string>(encoder, "digest", what), ErrorCode::kData,
              "encoder {} has changed since {} was aligned with it; restore it or align again", path, run_directory.string());
  }
  aligned.encoder->eval();
  const auto adapter = get<Json>(aligned.info, "adapter", what);
  aligned.adapter = models::make_adapter(adapter_config_from_json(adapter, what));
  copy_in(tensors, "adapter.", models::state_dict(*aligned.adapter), weights_path.string());
  aligned.adapter->eval();
  if (const auto found = tensors.find("average_user"); found != tensors.end()) {
    const std::vector<std::int64_t> shape{aligned.adapter->config().num_tokens, aligned.llm->config().hidden};
    UQA_CHECK(found->second.sizes().vec() == shape, ErrorCode::kData, "{}: tensor average_user is [{}], must be [{}]; align again", weights_path.string(),
              fmt::join(found->second.sizes(), ", "), fmt::join(shape, ", "));
    aligned.average_user_KL = found->second;
  }
}

}  // namespace

AlignedModel load_aligned(const fs::path& run_directory, std::optional<at::ScalarType> dtype, const AlignedSplit& split) {
  AlignedModel aligned;
  AlignedFacts facts;
  // Agreed in steps: a part that ranks make together follows only where all have come so far.
  comm::run_agreed(split.axis, [&] { facts = read_facts(aligned, run_directory, dtype); });
  comm::run_agreed(split.axis, [&] {
    aligned.llm = models::load_llm(aligned.llm_directory, facts.llm_options, split.llm);
    const auto trained = aligned.llm->trainable_parameters();
    copy_in(facts.tensors, "llm.", by_name(trained), (run_directory / "model.safetensors").string(), aligned.llm->trainable_layouts());
    for (const auto& [name, tensor] : trained) tensor.requires_grad_(false);
    aligned.llm->eval();
    move_to(*aligned.llm, split.device);
  });
  if (aligned.prompt == "none") return aligned;
  comm::run_agreed(split.axis, [&] { load_user_side(aligned, facts.tensors, run_directory); });
  comm::run_agreed(split.axis, [&] {
    LoadedUserModel whole{.model = aligned.encoder, .config = aligned.encoder_config, .info = {}};
    split_over(whole, split.encoder);
    aligned.encoder = whole.model;
    move_to(*aligned.encoder, split.device);
    move_to(*aligned.adapter, split.device);
    if (aligned.average_user_KL.defined()) aligned.average_user_KL = aligned.average_user_KL.to(split.device);
  });
  return aligned;
}

}  // namespace uqa::trainer
