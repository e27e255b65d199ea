#include "trainer/deviations.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "core/log.h"

namespace uqa::trainer {
namespace {

constexpr std::array kKnownDeviations{
    // Both stages.
    "seeded-numbers", "global-mean", "settings", "precision",
    // Pre-training.
    "packed-histories", "streamed-softmax", "no-repeated-samples", "short-histories", "exact-evaluation", "attention-start", "hstu-norm", "hstu-bias",
    "feature-subset",
    // Alignment.
    "packed-prompts", "answer-loss", "whole-text", "system-text", "frozen-encoder-without-dropout", "option-softmax", "calibrated-scores", "option-words",
    "lora", "adapter-kind", "soft-token-place", "grouped-questions", "whitened-start", "word-start", "given-adapter", "held-out-users", "partly-tuned",
    "no-soft-token"};

}  // namespace

std::span<const char* const> known_deviations() { return kKnownDeviations; }

bool Deviations::has(const std::string& id) const {
  return std::any_of(list_.begin(), list_.end(), [&](const auto& deviation) { return deviation.id == id; });
}

void Deviations::add(const std::string& id, std::string text) {
  const bool known = std::any_of(kKnownDeviations.begin(), kKnownDeviations.end(), [&](const char* name) { return id == name; });
  UQA_CHECK(known && !has(id), ErrorCode::kInternal, "deviation '{}': unknown or added twice", id);
  list_.push_back({id, std::move(text)});
}

Json Deviations::to_json() const {
  Json json = Json::array();
  for (const auto& deviation : list_) json.push_back({{"id", deviation.id}, {"text", deviation.text}});
  return json;
}

void Deviations::print(const std::string& stage) const {
  log::info(stage, "differs from the reference in {} points (run.json: deviations; docs/deviations.md):", list_.size());
  for (const auto& deviation : list_) log::info(stage, "  {}: {}", deviation.id, deviation.text);
}

}  // namespace uqa::trainer
