// Alignment that starts from an adapter that was trained before.
#include "core/error.h"
#include "models/tensor_io.h"
#include "trainer/align_parts.h"

namespace uqa::trainer {

void write_adapter(const fs::path& directory, const models::AdapterImpl& adapter) {
  models::save_tensors(directory / "adapter.safetensors", models::state_dict(adapter), {{"format", "pt"}});
  write_file_atomic(directory / "adapter.json", to_json(adapter.config()).dump(2) + "\n");
}

GivenAdapter read_given_adapter(const fs::path& directory, const models::AdapterConfig& wanted) {
  GivenAdapter given;
  const auto exported = directory / "export.json", aligned = directory / "model.json";
  const auto where = directory.string();
  if (fs::exists(exported)) {
    UQA_CHECK(fs::exists(directory / "adapter.json"), ErrorCode::kConfig, "adapter.from = {}, is an export without an adapter; export a run of `uqa align`", where);
    given.encoder_digest = get<std::string>(read_json(exported), "encoder_digest", exported.string());
    given.config = adapter_config_from_json(read_json(directory / "adapter.json"), (directory / "adapter.json").string());
    given.weights = directory / "adapter.safetensors";
  } else {
    UQA_CHECK(fs::exists(aligned), ErrorCode::kConfig, "adapter.from = {}, holds neither export.json nor model.json; give a directory of `uqa export` or `uqa align`", where);
    const auto info = read_json(aligned);
    const auto what = aligned.string();
    UQA_CHECK(get<std::string>(info, "format", what) == "uqa.aligned" && info.contains("adapter"), ErrorCode::kConfig,
              "adapter.from = {}, is a run without an adapter; give a run of `uqa align` with a soft token", where);
    const auto encoder = get<Json>(info, "encoder", what);
    UQA_CHECK(!get<bool>(encoder, "trained", what), ErrorCode::kConfig,
              "adapter.from = {}, was trained together with its encoder, which no --encoder-run holds; give a run that froze the encoder", where);
    given.encoder_digest = get<std::string>(encoder, "digest", what);
    given.config = adapter_config_from_json(get<Json>(info, "adapter", what), what);
    given.weights = directory / "model.safetensors";
    given.prefix = "adapter.";
  }
  const auto& have = given.config;
  UQA_CHECK(have.encoder_hidden == wanted.encoder_hidden, ErrorCode::kConfig,
            "adapter.from = {}, was made for an encoder of width {}, --encoder-run has width {}; give the encoder that it was trained with", where, have.encoder_hidden,
            wanted.encoder_hidden);
  const auto same = [&](const char* option, const auto& there, const auto& here) {
    UQA_CHECK(there == here, ErrorCode::kConfig, "adapter.from = {}, has {} = {}, this run has {}; give --{} {}", where, option, there, here, option, there);
  };
  same("adapter.kind", have.kind, wanted.kind);
  same("adapter.tokens", have.num_tokens, wanted.num_tokens);
  if (have.kind == "mlp" || have.kind == "qformer") same("adapter.inner", have.inner, wanted.inner);
  if (have.kind == "qformer") same("adapter.layers", have.num_layers, wanted.num_layers);
  if (have.kind == "qformer" || have.kind == "attention") same("adapter.heads", have.num_heads, wanted.num_heads);
  return given;
}

void start_from_given(models::AdapterImpl& adapter, const GivenAdapter& given, const std::string& encoder_digest) {
  UQA_CHECK(given.encoder_digest == encoder_digest, ErrorCode::kConfig,
            "adapter.from: {} was made for an encoder with digest {}, --encoder-run has {}; give the encoder that it was trained with", given.weights.string(),
            given.encoder_digest, encoder_digest);
  UQA_CHECK(given.config.llm_hidden == adapter.config().llm_hidden, ErrorCode::kConfig,
            "adapter.from: {} makes tokens of width {}, the LLM has width {}; give the LLM that it was trained with", given.weights.string(), given.config.llm_hidden,
            adapter.config().llm_hidden);
  std::map<std::string, Tensor> own;
  for (const auto& [name, tensor] : models::load_tensors(given.weights)) {
    if (name.starts_with(given.prefix)) own[name.substr(given.prefix.size())] = tensor;
  }
  models::load_state_dict(adapter, own, given.weights.string());
}

}  // namespace uqa::trainer
