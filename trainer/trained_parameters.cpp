#include "trainer/trained_parameters.h"

#include "core/clock.h"
#include "core/error.h"

namespace uqa::trainer {

using models::Shard;

namespace {

/// One data-parallel rank has nobody to share with.
Shard mode_of(const ParallelConfig& parallel, const comm::Mesh& mesh) {
  const auto mode = parse_shard(parallel.shard);
  return mesh.dp().size() == 1 ? Shard::kNone : mode;
}

/// Those that can, or cannot, be cut over dp.
std::vector<NamedParameter> select(const std::vector<NamedParameter>& parameters, bool can_be_cut) {
  std::vector<NamedParameter> some;
  for (const auto& parameter : parameters) {
    if (models::can_cut_over_dp(parameter.tensor, parameter.layout) == can_be_cut) some.push_back(parameter);
  }
  return some;
}

}  // namespace

Shard parse_shard(const std::string& name) {
  if (name == "none") return Shard::kNone;
  if (name == "optimizer") return Shard::kOptimizer;
  if (name == "full") return Shard::kFull;
  UQA_FAIL(ErrorCode::kConfig, "parallel.shard = {}, must be none, optimizer or full; change --parallel.shard", name);
}

TrainedParameters::TrainedParameters(const std::vector<NamedParameter>& parameters, const std::vector<models::Layered*>& models, const comm::Mesh& mesh,
                                     const ParallelConfig& parallel)
    : mesh_(mesh),
      mode_(mode_of(parallel, mesh)),
      parameters_(parameters),
      shards_(mode_ == Shard::kFull ? std::make_unique<LayerShards>(select(parameters, true), models, mesh.dp()) : nullptr),
      reducer_(shards_ ? select(parameters, false) : parameters, mesh, static_cast<std::int64_t>(parallel.bucket_bytes)) {
  switch (mode_) {
    case Shard::kNone: updated_ = parameters_; break;
    case Shard::kOptimizer: cut_for_updates(mesh.dp(), static_cast<std::int64_t>(parallel.bucket_bytes)); break;
    case Shard::kFull: {
      auto part = shards_->parts().begin();
      for (const auto& parameter : parameters_) updated_.push_back(models::can_cut_over_dp(parameter.tensor, parameter.layout) ? *part++ : parameter);
      break;
    }
  }
}

void TrainedParameters::cut_for_updates(const comm::Communicator& dp, std::int64_t message_bytes) {
  const at::NoGradGuard no_grad;
  for (const auto& parameter : parameters_) {
    const auto& [name, tensor, lr_scale, layout] = parameter;
    if (!models::can_cut_over_dp(tensor, layout)) {
      updated_.push_back(parameter);
      continue;
    }
    const auto dim = models::dp_dim(layout);
    const auto range = models::dp_range(tensor, layout, dp.rank(), dp.size());
    Cut cut{.whole = parameter, .part = tensor.detach().narrow(dim, range.begin, range.length), .range = range, .is_view = dim == 0};
    Tensor gradient = tensor.grad().detach().narrow(dim, range.begin, range.length);
    // Columns do not lie together, and the optimizer's kernel ignores strides: they get memory of their own.
    if (!cut.is_view) {
      cut.part = cut.part.clone(at::MemoryFormat::Contiguous);
      gradient = at::zeros_like(cut.part);
    }
    cut.part = cut.part.detach().requires_grad_(true);
    cut.part.mutable_grad() = gradient;
    updated_.push_back({name, cut.part, lr_scale, models::dp_part_layout(tensor, layout, dp.rank(), dp.size())});
    cuts_.push_back(std::move(cut));
  }
  std::vector<models::DpItem> items;
  std::vector<Tensor> parts, wholes;
  std::int64_t bytes = 0;
  const auto close = [&] {
    if (!items.empty()) messages_.push_back({.exchange = models::DpExchange(std::move(items), dp), .parts = std::move(parts), .wholes = std::move(wholes)});
    items.clear();
    parts.clear();
    wholes.clear();
    bytes = 0;
  };
  for (const auto& cut : cuts_) {
    const auto size = static_cast<std::int64_t>(cut.whole.tensor.nbytes());
    if (bytes + size > message_bytes) close();
    items.push_back(models::dp_item(cut.whole.tensor, cut.whole.layout));
    parts.push_back(cut.part);
    wholes.push_back(cut.whole.tensor);
    bytes += size;
  }
  close();
}

void TrainedParameters::begin_step() {
  reducer_.begin_step();
  if (shards_) shards_->begin_step();
}

void TrainedParameters::arm() {
  // Not beside shards_: a rank without a backward pass would send its buckets after the layers, the others among them, and both are started collectives of dp.
  if (!shards_) reducer_.arm();
}

void TrainedParameters::begin_micro_step() {
  if (shards_) shards_->begin_micro_step();
}

void TrainedParameters::end_micro_step() {
  if (shards_) shards_->end_micro_step();
}

double TrainedParameters::finish(double scale) {
  const double waited_s = reducer_.finish(scale);
  if (!shards_) return waited_s;
  shards_->finish(scale);
  return waited_s + shards_->take_seconds();
}

double TrainedParameters::global_norm() const {
  if (!shards_) return reducer_.global_norm();
  std::vector<Tensor> gradients;
  for (const auto& parameter : updated_) gradients.push_back(parameter.tensor.grad());
  return gradient_norm(updated_, gradients, mesh_);
}

void TrainedParameters::make_whole() {
  if (shards_) shards_->make_whole();
}

void TrainedParameters::release() {
  if (shards_) shards_->release();
}

void TrainedParameters::before_update(double factor) {
  const at::NoGradGuard no_grad;
  if (factor != 1) {
    for (auto& gradient : reducer_.gradients()) gradient.mul_(factor);
    if (shards_) {
      for (const auto& part : shards_->parts()) part.tensor.grad().mul_(factor);
    }
  }
  for (const auto& cut : cuts_) {
    if (cut.is_view) continue;
    const auto dim = models::dp_dim(cut.whole.layout);
    // The parameter may have been loaded since the last update.
    cut.part.detach().copy_(cut.whole.tensor.detach().narrow(dim, cut.range.begin, cut.range.length));
    cut.part.grad().copy_(cut.whole.tensor.grad().narrow(dim, cut.range.begin, cut.range.length));
  }
}

double TrainedParameters::after_update() {
  const auto begin = Clock::now();
  for (const auto& message : messages_) message.exchange.gather(message.parts, message.wholes);
  return seconds_since(begin);
}

}  // namespace uqa::trainer
