#include "models/recompute.h"

#include <algorithm>

#include <ATen/autocast_mode.h>

#include "core/error.h"

namespace uqa::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// The caller's autocast, without its cache of cast weights: a copy made without gradients must not serve the run that needs them.
class AutocastAs {
 public:
  struct State {
    bool enabled = false;
    at::ScalarType dtype = at::kBFloat16;
  };
  static State now(at::DeviceType device) { return {at::autocast::is_autocast_enabled(device), at::autocast::get_autocast_dtype(device)}; }

  AutocastAs(at::DeviceType device, State state) : device_(device), before_(now(device)), cached_before_(at::autocast::is_autocast_cache_enabled()) {
    set(state);
    at::autocast::set_autocast_cache_enabled(false);
  }
  ~AutocastAs() {
    set(before_);
    at::autocast::set_autocast_cache_enabled(cached_before_);
  }
  AutocastAs(const AutocastAs&) = delete;
  AutocastAs& operator=(const AutocastAs&) = delete;

 private:
  void set(State state) const {
    at::autocast::set_autocast_enabled(device_, state.enabled);
    at::autocast::set_autocast_dtype(device_, state.dtype);
  }
  at::DeviceType device_;
  State before_;
  bool cached_before_;
};

struct Segment : torch::CustomClassHolder {
  LayerFunction layer;
  std::vector<bool> defined;       ///< by input: false was passed as undefined
  std::size_t num_inputs = 0;      ///< defined ones
  std::vector<bool> outputs;       ///< by output of the layer: false was undefined
  at::DeviceType device = at::kCPU;
  AutocastAs::State autocast;

  /// The layer's inputs from the defined ones.
  [[nodiscard]] std::vector<Tensor> inputs_of(const variable_list& present) const {
    std::vector<Tensor> inputs;
    std::size_t next = 0;
    for (const bool is_defined : defined) inputs.push_back(is_defined ? present[next++] : Tensor());
    return inputs;
  }
};

struct Recomputed : torch::autograd::Function<Recomputed> {
  /// `tensors`: the defined inputs, then the parameters that require gradients.
  static variable_list forward(AutogradContext* ctx, at::TensorList tensors, const c10::intrusive_ptr<Segment>& segment) {
    variable_list outputs;
    {
      const AutocastAs autocast(segment->device, segment->autocast);
      std::vector<Tensor> present;
      for (std::size_t i = 0; i < segment->num_inputs; ++i) present.push_back(tensors[i].detach());
      for (auto& output : segment->layer(segment->inputs_of(present))) {
        segment->outputs.push_back(output.defined());
        if (!output.defined()) continue;
        // An input that comes out as it is must not be taken for one that was changed in place.
        const bool alias = std::any_of(present.begin(), present.end(), [&](const Tensor& input) { return output.is_alias_of(input); });
        outputs.push_back(alias ? output.clone() : output);
      }
    }
    ctx->saved_data["segment"] = c10::IValue::make_capsule(segment);
    ctx->set_materialize_grads(false);
    ctx->save_for_backward(tensors.vec());
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto segment = c10::static_intrusive_pointer_cast<Segment>(ctx->saved_data["segment"].toCapsule());
    const auto saved = ctx->get_saved_variables();
    variable_list wanted;
    std::vector<std::size_t> index_of_wanted;
    variable_list outputs, output_grads;
    {
      const at::AutoGradMode grad_mode(true);
      const AutocastAs autocast(segment->device, segment->autocast);
      variable_list present;
      for (std::size_t i = 0; i < segment->num_inputs; ++i) {
        // Not the saved tensor itself: the graph behind it is the outer one's affair.
        present.push_back(saved[i].detach().requires_grad_(ctx->needs_input_grad(i)));
      }
      for (std::size_t i = 0; i < saved.size(); ++i) {
        if (!ctx->needs_input_grad(i)) continue;
        wanted.push_back(i < segment->num_inputs ? present[i] : saved[i]);
        index_of_wanted.push_back(i);
      }
      std::size_t next = 0;
      for (const auto& output : segment->layer(segment->inputs_of(present))) {
        if (!output.defined()) continue;
        const auto& grad = grads[next++];
        if (!grad.defined() || !output.requires_grad()) continue;
        outputs.push_back(output);
        output_grads.push_back(grad);
      }
    }
    variable_list result(saved.size() + 1);
    if (outputs.empty() || wanted.empty()) return result;
    // Not backward(): that would accumulate into the parameters here, once for each layer that shares one.
    auto found = torch::autograd::grad(outputs, wanted, output_grads, /*retain_graph=*/std::nullopt, /*create_graph=*/false, /*allow_unused=*/true);
    for (std::size_t i = 0; i < found.size(); ++i) result[index_of_wanted[i]] = std::move(found[i]);
    return result;
  }
};

}  // namespace

std::vector<Tensor> recomputed(const LayerFunction& layer, const std::vector<Tensor>& inputs, const std::vector<Tensor>& parameters) {
  auto segment = c10::make_intrusive<Segment>();
  std::vector<Tensor> tensors;
  for (const auto& input : inputs) {
    segment->defined.push_back(input.defined());
    if (input.defined()) tensors.push_back(input);
  }
  UQA_CHECK(!tensors.empty(), ErrorCode::kInternal, "a recomputed layer has no input");
  segment->num_inputs = tensors.size();
  for (const auto& parameter : parameters) {
    if (parameter.defined() && parameter.requires_grad()) tensors.push_back(parameter);
  }
  const bool needs_grad = at::GradMode::is_enabled() && std::any_of(tensors.begin(), tensors.end(), [](const Tensor& t) { return t.requires_grad(); });
  if (!needs_grad) return layer(inputs);
  segment->layer = layer;
  segment->device = tensors.front().device().type();
  segment->autocast = AutocastAs::now(segment->device);
  const auto present = Recomputed::apply(at::TensorList(tensors), segment);
  std::vector<Tensor> outputs;
  std::size_t next = 0;
  for (const bool defined : segment->outputs) outputs.push_back(defined ? present[next++] : Tensor());
  return outputs;
}

Tensor recomputed(const std::function<Tensor(const Tensor&)>& layer, const Tensor& input, const std::vector<Tensor>& parameters) {
  return recomputed([layer](const std::vector<Tensor>& x) -> std::vector<Tensor> { return {layer(x.front())}; }, std::vector<Tensor>{input}, parameters).front();
}

bool& RecomputeLayers::is_on() {
  thread_local bool on = false;
  return on;
}

}  // namespace uqa::models
