#include "trainer/layer_shards.h"

#include <c10/core/Allocator.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <functional>
#include <map>
#include <utility>

#include "core/clock.h"
#include "core/error.h"

namespace uqa::trainer {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void set_storage_bytes(c10::StorageImpl& storage, std::size_t bytes) {
  storage.set_data_ptr_noswap(c10::GetAllocator(storage.device_type())->allocate(bytes));
  storage.set_nbytes(bytes);
}

/// Memory for a contiguous tensor's values. All tensors that share its storage see it, also those that a graph keeps.
void give_memory(const Tensor& tensor) {
  auto& storage = *tensor.storage().unsafeGetStorageImpl();
  set_storage_bytes(storage, static_cast<std::size_t>(tensor.numel()) * tensor.element_size());
  storage.clear_data_ptr_access_error_msg_();
}

void take_memory(const Tensor& tensor) {
  auto& storage = *tensor.storage().unsafeGetStorageImpl();
  set_storage_bytes(storage, 0);
  storage.release_data_and_set_meta_custom_data_ptr_error_msg_("a parameter was read that parallel.shard=full keeps in parts while its layer does not run");
}

/// Memory for the values, and tensors to write them through: such a write is no change of the parameter, so what a graph saved of it is valid again, with the
/// same values.
std::vector<Tensor> writable(const std::vector<Tensor>& wholes) {
  std::vector<Tensor> targets;
  for (const auto& whole : wholes) {
    give_memory(whole);
    targets.push_back(whole.variable_data());
  }
  return targets;
}

struct Callback : torch::CustomClassHolder {
  explicit Callback(std::function<void()> function) : call(std::move(function)) {}
  std::function<void()> call;
};

}  // namespace

/// Identity behind a layer: its backward runs before the layer's, and after all of what follows, since the engine takes the youngest node that is ready.
struct LayerShards::BeforeBackward : torch::autograd::Function<BeforeBackward> {
  static variable_list forward(AutogradContext* ctx, at::TensorList tensors, const c10::intrusive_ptr<Callback>& callback) {
    ctx->saved_data["callback"] = c10::IValue::make_capsule(callback);
    variable_list out;
    for (const auto& x : tensors) out.push_back(x.detach());
    return out;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    c10::static_intrusive_pointer_cast<Callback>(ctx->saved_data["callback"].toCapsule())->call();
    variable_list out = grads;
    out.emplace_back();
    return out;
  }
};

/// At a parameter whose gradient is there. The parameter owns it.
class LayerShards::Helper : public torch::autograd::PostAccumulateGradHook {
 public:
  explicit Helper(LayerShards* shards) : shards_(shards) {}
  void operator()(const torch::autograd::Variable&) override { shards_->help(); }

 private:
  LayerShards* shards_;
};

/// start 1; for 1 .. L: wait, start the next; then for L .. 1: wait (not L, which is still there), start the one before, and, once the gradients are there,
/// reduce-scatter.
std::vector<LayerShards::Event> LayerShards::schedule(std::size_t num_units) {
  std::vector<Event> events;
  if (num_units > 0) events.push_back({Action::kStart, 0});
  for (std::size_t unit = 0; unit < num_units; ++unit) {
    events.push_back({Action::kForward, unit});
    if (unit + 1 < num_units) events.push_back({Action::kStart, unit + 1});
  }
  for (std::size_t unit = num_units; unit-- > 0;) {
    events.push_back({Action::kBackward, unit});
    if (unit > 0) events.push_back({Action::kStart, unit - 1});
    events.push_back({Action::kReduce, unit});
  }
  return events;
}

LayerShards::LayerShards(const std::vector<NamedParameter>& parameters, const std::vector<models::Layered*>& models, const comm::Communicator& dp)
    : dp_(dp), models_(models) {
  const at::NoGradGuard no_grad;
  std::map<const void*, std::size_t> layer_of;
  std::size_t num_layers = 0;
  for (const auto* model : models_) {
    for (const auto& layer : model->layer_parameters()) {
      for (const auto& parameter : layer) {
        UQA_CHECK(layer_of.emplace(parameter.unsafeGetTensorImpl(), num_layers).second, ErrorCode::kInternal, "a parameter of layer {} is also one of layer {}", num_layers,
                  layer_of[parameter.unsafeGetTensorImpl()]);
      }
      ++num_layers;
    }
  }
  std::vector<Unit> layers(num_layers);
  for (const auto& [name, tensor, lr_scale, layout] : parameters) {
    UQA_CHECK(tensor.is_leaf() && tensor.requires_grad() && tensor.is_contiguous() && tensor.scalar_type() == at::kFloat && tensor.storage_offset() == 0 &&
                  tensor.storage().nbytes() == static_cast<std::size_t>(tensor.nbytes()),
              ErrorCode::kInternal, "parameter {}: must be a contiguous float32 leaf with storage of its own", name);
    const auto range = models::dp_range(tensor, layout, dp.rank(), dp.size());
    auto part = tensor.detach().narrow(models::dp_dim(layout), range.begin, range.length).clone(at::MemoryFormat::Contiguous).requires_grad_(true);
    part.mutable_grad() = at::zeros_like(part);
    tensor.mutable_grad() = Tensor();
    const auto found = layer_of.find(tensor.unsafeGetTensorImpl());
    auto& unit = found == layer_of.end() ? outside_ : layers[found->second];
    unit.wholes.push_back(tensor);
    unit.parts.push_back(part);
    unit.items.push_back(models::dp_item(tensor, layout));
    parts_.push_back({name, part, lr_scale, models::dp_part_layout(tensor, layout, dp.rank(), dp.size())});
  }
  for (auto& layer : layers) {
    unit_of_layer_.push_back(layer.wholes.empty() ? -1 : static_cast<std::int64_t>(units_.size()));
    if (!layer.wholes.empty()) units_.push_back(std::move(layer));
  }
  events_ = schedule(units_.size());
  release();
  for (const auto& unit : units_) {
    for (const auto& whole : unit.wholes) torch::autograd::impl::set_post_acc_grad_hooks(whole, std::make_unique<Helper>(this));
  }
  std::int64_t first = 0;
  for (auto* model : models_) {
    model->watch_layers(this, first);
    first += static_cast<std::int64_t>(model->layer_parameters().size());
  }
}

LayerShards::~LayerShards() {
  for (auto* model : models_) model->watch_layers(nullptr, 0);
  for (const auto& unit : units_) {
    for (const auto& whole : unit.wholes) torch::autograd::impl::set_post_acc_grad_hooks(whole, nullptr);
  }
}

void LayerShards::gather(Unit& unit) {
  if (unit.resident || unit.wholes.empty()) return;
  const auto begin = Clock::now();
  models::DpExchange(unit.items, dp_).gather(unit.parts, writable(unit.wholes));
  unit.resident = true;
  seconds_ += seconds_since(begin);
}

void LayerShards::start(Unit& unit) {
  const auto begin = Clock::now();
  ahead_ = models::DpExchange(unit.items, dp_).start_gather(unit.parts);
  seconds_ += seconds_since(begin);
}

void LayerShards::arrive(Unit& unit) {
  const auto begin = Clock::now();
  auto gathering = std::exchange(ahead_, std::nullopt);
  models::DpExchange(unit.items, dp_).finish_gather(std::move(gathering).value(), writable(unit.wholes));
  unit.resident = true;
  seconds_ += seconds_since(begin);
}

void LayerShards::help() {
  if (!ahead_) return;
  const auto begin = Clock::now();
  static_cast<void>(ahead_->work.test());
  seconds_ += seconds_since(begin);
}

void LayerShards::give_up(Unit& unit) {
  if (!unit.resident) return;
  for (const auto& whole : unit.wholes) take_memory(whole);
  unit.resident = false;
}

void LayerShards::reduce(Unit& unit) {
  if (unit.wholes.empty()) return;
  const at::NoGradGuard no_grad;
  std::vector<Tensor> gradients;
  for (const auto& whole : unit.wholes) {
    gradients.push_back(whole.grad());
    whole.mutable_grad() = Tensor();
  }
  const auto begin = Clock::now();
  const auto sums = models::DpExchange(unit.items, dp_).reduce_scatter(gradients);
  seconds_ += seconds_since(begin);
  for (std::size_t i = 0; i < sums.size(); ++i) unit.parts[i].grad().add_(sums[i]);
}

void LayerShards::run(const Event& event) {
  auto& unit = units_[event.unit];
  switch (event.action) {
    case Action::kStart: return start(unit);
    case Action::kForward:
      if (event.unit > 0) give_up(units_[event.unit - 1]);  // where this rank did not run it
      return arrive(unit);
    case Action::kBackward:
      if (!unit.resident) arrive(unit);
      return;
    case Action::kReduce:
      give_up(unit);  // first: the values of the next one and the gradients' message need the memory
      return reduce(unit);
  }
}

void LayerShards::run_until(Action action, std::size_t unit) {
  std::size_t last = next_;
  while (last < events_.size() && !(events_[last].action == action && events_[last].unit == unit)) ++last;
  UQA_CHECK(last < events_.size(), ErrorCode::kInternal, "a layer runs a second time in one micro-step, or before one that it comes after, which parallel.shard=full cannot serve");
  while (next_ <= last) run(events_[next_++]);
  run_start();
}

void LayerShards::run_start() {
  if (next_ < events_.size() && events_[next_].action == Action::kStart) run(events_[next_++]);
}

void LayerShards::check_between_micro_steps(const char* what) const {
  UQA_CHECK(!in_micro_step_, ErrorCode::kInternal, "{} inside a micro-step, whose collectives are not all through; call end_micro_step() first", what);
}

void LayerShards::begin_step() {
  check_between_micro_steps("begin_step()");
  const at::NoGradGuard no_grad;
  for (const auto& part : parts_) part.tensor.grad().zero_();
  gather(outside_);
}

void LayerShards::begin_micro_step() {
  check_between_micro_steps("begin_micro_step()");
  in_micro_step_ = true;
  next_ = 0;
  run_start();
}

void LayerShards::end_micro_step() {
  while (next_ < events_.size()) run(events_[next_++]);
  in_micro_step_ = false;
}

void LayerShards::finish(double scale) {
  check_between_micro_steps("finish()");
  reduce(outside_);
  give_up(outside_);
  if (scale == 1) return;
  const at::NoGradGuard no_grad;
  for (const auto& part : parts_) part.tensor.grad().mul_(scale);
}

void LayerShards::make_whole() {
  check_between_micro_steps("make_whole()");
  gather(outside_);
  for (auto& unit : units_) gather(unit);
}

void LayerShards::release() {
  check_between_micro_steps("release()");
  give_up(outside_);
  for (auto& unit : units_) give_up(unit);
}

double LayerShards::take_seconds() { return std::exchange(seconds_, 0); }

void LayerShards::enter(std::int64_t layer) {
  const auto unit = unit_of_layer_[static_cast<std::size_t>(layer)];
  if (in_micro_step_ && unit >= 0) run_until(Action::kForward, static_cast<std::size_t>(unit));
}

std::vector<Tensor> LayerShards::leave(std::int64_t layer, std::vector<Tensor> outputs) {
  const auto unit = unit_of_layer_[static_cast<std::size_t>(layer)];
  if (!in_micro_step_) return outputs;
  help();
  if (unit < 0) return outputs;
  const auto index = static_cast<std::size_t>(unit);
  if (index + 1 < units_.size()) give_up(units_[index]);  // the last one's backward follows at once
  std::vector<Tensor> tracked;
  for (const auto& output : outputs) {
    if (output.requires_grad()) tracked.push_back(output);
  }
  if (tracked.empty()) return outputs;
  const auto results = BeforeBackward::apply(at::TensorList(tracked), c10::make_intrusive<Callback>([this, index] { run_until(Action::kBackward, index); }));
  std::size_t next = 0;
  for (auto& output : outputs) {
    if (output.requires_grad()) output = results[next++];
  }
  return outputs;
}

}  // namespace uqa::trainer
