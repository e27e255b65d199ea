// How an alignment run differs from the reference. Every id has its row in docs/deviations.md.
#include "trainer/align_parts.h"

namespace uqa::trainer {
namespace {

std::string other_align_settings(const AlignConfig& config) {
  const auto published = align_preset("faithful");
  auto list = differing_settings(config.loop, published.loop);
  const auto frozen = parse_freeze(config.freeze);
  const bool others_trained = !frozen.encoder || !frozen.llm || config.lora.rank > 0;
  const auto rate = [](const AlignConfig& c) { return c.other_lr > 0 ? c.other_lr : c.loop.optim.peak_lr; };
  if (others_trained && rate(config) != rate(published)) list.push_back(fmt::format("other learning rate {} ({})", rate(config), rate(published)));
  return fmt::format("{}", fmt::join(list, ", "));
}

}  // namespace

Deviations align_deviations(const AlignConfig& config, const std::string& start, const std::string& system) {
  const bool soft = config.prompt == "soft", chat = config.objective == "chat";
  const auto frozen = parse_freeze(config.freeze);
  Deviations list;
  list.add("packed-prompts", chat ? "texts are packed end to end and the head runs only where a token carries loss; the reference pads to 512 and runs it everywhere"
                                  : "prompts are packed, what they have in common runs once, and the head runs only where a token is scored; the reference pads to 512 "
                                    "and runs it everywhere");
  list.add("seeded-numbers", "initial weights, order and dropout come from counter-based numbers keyed by seed; the reference starts each rank's adapter differently");
  list.add("global-mean", "the loss is the mean over the global batch; the reference averages the means of its ranks");
  if (!chat) {
    list.add("answer-loss", "only the answer carries loss; the reference also trains the chat's markers of every turn");
    list.add("whole-text", "nothing is cut off; the reference cuts text on the right at 512 tokens, which can drop the answer");
  } else if (config.prompt_format.max_tokens != 512) {
    list.add("whole-text", config.prompt_format.max_tokens == 0
                               ? "nothing is cut off; the reference cuts text on the right at 512 tokens, which can drop the answer"
                               : fmt::format("text is cut on the right at {} tokens; the reference cuts at 512", config.prompt_format.max_tokens));
  }
  if (system != kReferenceSystem) list.add("system-text", fmt::format("the system text is '{}'; the reference trains with '{}'", system, kReferenceSystem));
  if (soft && frozen.encoder && config.encoder.eval_when_frozen) {
    list.add("frozen-encoder-without-dropout", "the frozen encoder runs without dropout; the reference leaves dropout on");
  }
  if (config.objective == "choice" || config.objective == "contrast") {
    list.add("option-softmax", fmt::format("the loss is a softmax over the four options' scores{}; the reference predicts the answer token",
                                           config.objective == "contrast" ? " and one over the users who are asked the same" : ""));
  }
  if (config.calibrate) {
    list.add("calibrated-scores", "an option's score is its gain over the same question about the average user; the reference scores the answer as it is");
  }
  if (config.answer != "letter") list.add("option-words", "the option's own words are learned; the reference learns the letter");
  if (config.lora.rank > 0) list.add("lora", fmt::format("the LLM gets LoRA of rank {}; the reference trains the adapter alone or everything", config.lora.rank));
  const bool all_trained = !frozen.encoder && !frozen.adapter && !frozen.llm;
  if (soft && !all_trained && !(frozen.encoder && frozen.llm && !frozen.adapter)) {
    list.add("partly-tuned", fmt::format("frozen are: {}; the reference trains the adapter alone or everything", config.freeze));
  }
  if (soft && config.adapter.kind != "linear") {
    list.add("adapter-kind", fmt::format("the adapter is {} with {} tokens; the reference's is linear and makes one from the mean state", config.adapter.kind, config.adapter.tokens));
  }
  if (soft && config.prompt_format.place != "before") {
    list.add("soft-token-place", fmt::format("soft tokens stand at {}; the reference puts its one before the whole chat", config.prompt_format.place));
  }
  if (config.group_by_text) list.add("grouped-questions", "questions that share their text form one sample of a step; the reference shuffles questions one by one");
  if (soft && !config.adapter.from.empty()) list.add("given-adapter", "the adapter starts from a trained one; the reference starts at random");
  if (soft && (start == "whitened" || start == "words")) {
    list.add("whitened-start", "the adapter is trained on whitened mean states (stored as one linear layer); the reference trains on the states as they are");
  }
  if (soft && start == "words") list.add("word-start", "the adapter starts near the embeddings of the words that answer its users' questions; the reference starts at random");
  if (config.validation_fraction > 0 && config.validation_questions > 0) {
    list.add("held-out-users", fmt::format("{} of the training users are held out and choose the best checkpoint; the reference trains on all and keeps the last",
                                           config.validation_fraction));
  }
  if (!soft) list.add("no-soft-token", "no soft token: this run is the baseline that sees no user");
  if (const auto settings = other_align_settings(config); !settings.empty()) {
    list.add("settings", fmt::format("settings that differ from the published ones (in brackets): {}; `--preset faithful` gives those", settings));
  }
  list.add("precision", config.loop.train.dtype == "bf16"
                            ? "the LLM's matrix products are bfloat16, attention, norms, softmax and adapter float32, and a frozen encoder runs in float32; the reference "
                              "trains with every module in bfloat16 and flash-attention"
                            : "matrix products are float32; the reference aligns in bfloat16 with flash-attention");
  return list;
}

}  // namespace uqa::trainer
