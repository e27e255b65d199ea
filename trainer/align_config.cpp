// Settings of the alignment stage.
#include <algorithm>
#include <sstream>

#include "core/error.h"
#include "trainer/align.h"
#include "trainer/align_parts.h"

namespace uqa::trainer {

Frozen parse_freeze(const std::string& list) {
  Frozen frozen;
  std::istringstream words(list);
  for (std::string word; std::getline(words, word, ',');) {
    if (word == "encoder") {
      frozen.encoder = true;
    } else if (word == "adapter") {
      frozen.adapter = true;
    } else if (word == "llm") {
      frozen.llm = true;
    } else {
      UQA_CHECK(word.empty(), ErrorCode::kConfig, "freeze = {}, must be a list of encoder, adapter, llm; change --freeze", list);
    }
  }
  return frozen;
}

void AlignConfig::validate() const {
  loop.validate();
  UQA_CHECK(loop.parallel.tables == "replicated", ErrorCode::kConfig,
            "parallel.tables = {}, must be replicated in alignment, which holds the encoder's tables whole on every rank; change --parallel.tables", loop.parallel.tables);
  UQA_CHECK(prompt == "soft" || prompt == "none", ErrorCode::kConfig, "prompt = {}, must be soft or none; change --prompt", prompt);
  UQA_CHECK(!data.empty(), ErrorCode::kConfig, "data is missing; give --data DIR");
  UQA_CHECK(!questions.empty(), ErrorCode::kConfig, "questions is missing; give --questions DIR");
  UQA_CHECK(!llm.empty(), ErrorCode::kConfig, "llm is missing; give --llm DIR");
  UQA_CHECK(prompt == "none" || !encoder_run.empty(), ErrorCode::kConfig, "encoder-run is missing; give --encoder-run DIR, or --prompt none");
  UQA_CHECK(answer == "letter" || answer == "text" || answer == "both", ErrorCode::kConfig,
            "answer = {}, must be letter, text or both; change --answer", answer);
  UQA_CHECK(preset == "default" || preset == "faithful", ErrorCode::kConfig, "preset = {}, must be default or faithful; change --preset", preset);
  UQA_CHECK(objective == "choice" || objective == "contrast" || objective == "lm" || objective == "chat", ErrorCode::kConfig,
            "objective = {}, must be choice, contrast, lm or chat; change --objective", objective);
  const bool options_scored = objective == "choice" || objective == "contrast";
  UQA_CHECK(objective != "chat" || answer != "both", ErrorCode::kConfig,
            "answer = both with objective = chat, which has one answer in a text; give --answer letter or text, or --objective lm");
  UQA_CHECK(objective != "contrast" || group_by_text, ErrorCode::kConfig,
            "objective = contrast with group_by_text = false, compares the users who are asked the same in one sample; give --group_by_text or another --objective");
  UQA_CHECK(prompt_format.max_tokens >= 0, ErrorCode::kConfig, "prompt.max_tokens = {}, must be >= 0 (0: nothing is cut); change --prompt.max_tokens",
            prompt_format.max_tokens);
  UQA_CHECK(objective == "chat" || (prompt_format.max_tokens == 0 && !prompt_format.allow_lost_answers), ErrorCode::kConfig,
            "prompt.max_tokens = {}, prompt.allow_lost_answers = {} with objective = {}, which cuts nothing; drop them or give --objective chat", prompt_format.max_tokens,
            prompt_format.allow_lost_answers, objective);
  UQA_CHECK(other_lr >= 0, ErrorCode::kConfig, "optim.other_lr = {}, must be >= 0 (0: optim.peak_lr); change --optim.other_lr", other_lr);
  UQA_CHECK(choice_scale > 0, ErrorCode::kConfig, "choice_scale = {}, must be > 0; change --choice_scale", choice_scale);
  UQA_CHECK(adapter.init == "auto" || adapter.init == "words" || adapter.init == "whitened" || adapter.init == "plain", ErrorCode::kConfig,
            "adapter.init = {}, must be auto, words, whitened or plain; change --adapter.init", adapter.init);
  const auto structure = adapter_config(adapter.heads, 1);  // the encoder's width is not known yet: one that the heads divide
  structure.validate();
  prompt_options().validate();
  UQA_CHECK(adapter.init == "auto" || adapter.init == "plain" || adapter.kind == "linear" || adapter.kind == "last", ErrorCode::kConfig,
            "adapter.init = {} with adapter.kind = {}, works for the kinds linear and last; give --adapter.init plain", adapter.init, adapter.kind);
  UQA_CHECK(adapter.from.empty() || ((adapter.init == "auto" || adapter.init == "plain") && prompt == "soft"), ErrorCode::kConfig,
            "adapter.from = {} with adapter.init = {} and prompt = {}, the adapter's start is read; drop --adapter.init, or --adapter.from", adapter.from, adapter.init, prompt);
  UQA_CHECK(!cache.users.empty(), ErrorCode::kConfig, "cache.users is empty, must be memory, off, or a file; change --cache.users");
  UQA_CHECK(cache.max_bytes > 0, ErrorCode::kConfig, "cache.max_bytes = {}, must be > 0; change --cache.max_bytes", cache.max_bytes);
  UQA_CHECK(adapter.init_scale > 0, ErrorCode::kConfig, "adapter.init_scale = {}, must be > 0; change --adapter.init_scale", adapter.init_scale);
  UQA_CHECK(lora.rank >= 0, ErrorCode::kConfig, "lora.rank = {}, must be >= 0 (0: no LoRA); change --lora.rank", lora.rank);
  UQA_CHECK(lora.alpha >= 0, ErrorCode::kConfig, "lora.alpha = {}, must be >= 0 (0: 2 * rank); change --lora.alpha", lora.alpha);
  UQA_CHECK(lora.rank > 0 || lora.alpha == 0, ErrorCode::kConfig, "lora.alpha = {} with lora.rank = 0, which makes no LoRA; give --lora.rank above 0 or drop --lora.alpha",
            lora.alpha);
  UQA_CHECK(max_questions >= 0, ErrorCode::kConfig, "max_questions = {}, must be >= 0 (0: all); change --max_questions", max_questions);
  UQA_CHECK(validation_fraction >= 0 && validation_fraction < 1, ErrorCode::kConfig,
            "validation_fraction = {}, must be in [0, 1); change --validation_fraction", validation_fraction);
  UQA_CHECK(validation_questions >= 0, ErrorCode::kConfig, "validation_questions = {}, must be >= 0; change --validation_questions",
            validation_questions);
  UQA_CHECK(eval.every >= 0, ErrorCode::kConfig, "eval.every = {}, must be >= 0 (0: never); change --eval.every", eval.every);
  UQA_CHECK(eval.max_questions > 0, ErrorCode::kConfig, "eval.max_questions = {}, must be > 0; change --eval.max_questions, or give --eval.every 0",
            eval.max_questions);
  UQA_CHECK(eval.every == 0 || validation_fraction > 0, ErrorCode::kConfig,
            "eval.every = {} with validation_fraction = {} leaves no user to ask; raise --validation_fraction or give --eval.every 0", eval.every,
            validation_fraction);
  UQA_CHECK(micro_rows > 0, ErrorCode::kConfig, "micro_rows = {}, must be > 0; change --micro_rows", micro_rows);
  const Frozen frozen = parse_freeze(freeze);
  UQA_CHECK(frozen.llm || lora.rank == 0, ErrorCode::kConfig,
            "lora.rank = {} while the whole LLM is trained (freeze = {}), must be 0; add llm to --freeze or give --lora.rank 0", lora.rank, freeze);
  UQA_CHECK(!calibrate || (prompt == "soft" && options_scored && frozen.encoder), ErrorCode::kConfig,
            "calibrate = true with prompt = {}, objective = {}, freeze = {}, needs prompt soft, objective choice or contrast, and a frozen encoder; "
            "give --calibrate=false or change the other",
            prompt, objective, freeze);
  UQA_CHECK(adapter.init != "words" || prompt != "soft" || options_scored, ErrorCode::kConfig,
            "adapter.init = words with objective = {}, needs questions with options; choose objective choice or contrast, or --adapter.init whitened", objective);
  UQA_CHECK(prompt != "soft" || !frozen.encoder || encoder.eval_when_frozen || cache.users == "off", ErrorCode::kConfig,
            "cache.users = {} with encoder.eval_when_frozen = false: dropout stays on, so the frozen encoder's states differ in every step and cannot be kept; give "
            "--cache.users off, or --encoder.eval_when_frozen",
            cache.users);
  UQA_CHECK(frozen.encoder || cache.users == "memory" || cache.users == "off", ErrorCode::kConfig,
            "cache.users = {} while the encoder is trained (freeze = {}), its states change in every step; add encoder to --freeze", cache.users, freeze);
  const bool trains_llm = lora.rank > 0 || !frozen.llm;
  UQA_CHECK(trains_llm || (prompt == "soft" && !(frozen.encoder && frozen.adapter && adapter.from.empty())), ErrorCode::kConfig,
            "freeze = {}, lora.rank = {} and prompt = {} leave nothing to train; set --lora.rank, thaw a part with --freeze, or give --adapter.from to make a run of parts that are "
            "trained already",
            freeze, lora.rank, prompt);
}

void AlignConfig::check_inputs() const {
  UQA_CHECK(fs::is_directory(llm), ErrorCode::kConfig, "llm = {}, must be a Hugging Face directory; change --llm", llm);
  if (prompt != "soft") return;
  const auto path = fs::path(encoder_run) / "model.json";
  UQA_CHECK(fs::exists(path), ErrorCode::kConfig, "encoder-run = {}, holds no model.json; give the run directory of a finished `uqa pretrain`", encoder_run);
  const auto info = read_json(path);
  UQA_CHECK(get_or<std::string>(info, "format", "", path.string()) == "uqa.user_model", ErrorCode::kConfig,
            "encoder-run = {}, holds a model of another stage; give the run directory of `uqa pretrain`", encoder_run);
  const auto encoder_config = user_model_config_from_json(get<Json>(info, "model", path.string()), path.string());
  const auto structure = adapter_config(encoder_config.hidden, 1);
  structure.validate();
  if (!adapter.from.empty()) static_cast<void>(read_given_adapter(adapter.from, structure));
}

AlignConfig align_preset(const std::string& preset) {
  UQA_CHECK(preset == "default" || preset == "faithful", ErrorCode::kConfig, "preset = {}, must be default or faithful; change --preset", preset);
  AlignConfig config;
  config.preset = preset;
  if (preset == "default") return config;
  // reference: run_align_fsdp.py with its script's values
  config.answer = "letter";
  config.objective = "chat";
  config.group_by_text = false;
  config.freeze = "encoder,llm";
  config.lora.rank = 0;
  config.encoder.eval_when_frozen = false;
  config.cache.users = "off";
  config.adapter.kind = "linear";
  config.adapter.init = "plain";
  config.prompt_format.place = "before";
  config.prompt_format.system = kReferenceSystem;
  config.prompt_format.max_tokens = 512;
  config.prompt_format.allow_lost_answers = true;
  config.validation_fraction = 0;
  config.other_lr = 1e-6;
  config.loop.optim.peak_lr = 1e-4;
  config.loop.optim.beta2 = 0.98;
  config.loop.optim.clip_norm = 1.5;
  config.loop.batch.global_users = 32;
  config.loop.train.epochs = 3;
  config.loop.train.dtype = "bf16";
  return config;
}

PromptOptions AlignConfig::prompt_options() const {
  PromptOptions options{.place = prompt_format.place, .soft_tokens = adapter.tokens, .system = std::nullopt, .end_token = prompt_format.end_token};
  if (prompt_format.system != "default") options.system = prompt_format.system;
  return options;
}

models::AdapterConfig AlignConfig::adapter_config(std::int64_t encoder_hidden, std::int64_t llm_hidden) const {
  return {.kind = adapter.kind, .encoder_hidden = encoder_hidden, .llm_hidden = llm_hidden, .num_tokens = adapter.tokens, .inner = adapter.inner,
          .num_layers = adapter.layers, .num_heads = adapter.heads};
}

}  // namespace uqa::trainer
