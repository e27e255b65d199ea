// models/recompute.h - activation checkpointing: a layer keeps its inputs only and runs again in the backward pass.
//
//   const RecomputeLayers recompute(config.memory.recompute == "layers");   // around the forward pass
//   state_TH = run_layer([layer](const Tensor& x) mutable { return layer->forward(x); }, state_TH, *layer);
//
// Collectives inside a layer run again, too: in the forward pass of its second run, then in the backward pass of that. Tensor-parallel peers
// run the same layers on the same rows, so they do so in the same order; `LayerFunction` says what that asks of a layer.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "models/packed.h"

namespace uqa::models {

/// A layer as a function of its differentiable inputs. It is called once forward and once backward and must compute the same both times:
/// dropout by key, nothing that it changes. It outlives the forward pass, so it holds by value whatever else it needs. Ranks that meet in it must
/// all be recomputing it or none, and with equal requires_grad of inputs and parameters, since these decide whether it runs again.
using LayerFunction = std::function<std::vector<Tensor>(const std::vector<Tensor>& inputs)>;

/// layer(inputs), with the same gradients as a plain call, but keeping only `inputs` for them. `parameters` are all tensors other than the inputs
/// that gradients must reach; they become inputs of one autograd node. So a parameter that several layers share gets the sum of their gradients
/// once, and its hooks run once, as without recomputation. Undefined inputs are passed through. Without gradients it is a plain call.
[[nodiscard]] std::vector<Tensor> recomputed(const LayerFunction& layer, const std::vector<Tensor>& inputs, const std::vector<Tensor>& parameters);

/// The same for a layer of one input and one output.
[[nodiscard]] Tensor recomputed(const std::function<Tensor(const Tensor&)>& layer, const Tensor& input, const std::vector<Tensor>& parameters);

/// While it lives and is on, the encoders and LLMs that this thread runs forward recompute their layers: less memory, about a third more time.
class RecomputeLayers {
 public:
  explicit RecomputeLayers(bool on) : before_(is_on()) { is_on() = on; }
  ~RecomputeLayers() { is_on() = before_; }
  RecomputeLayers(const RecomputeLayers&) = delete;
  RecomputeLayers& operator=(const RecomputeLayers&) = delete;
  [[nodiscard]] static bool& is_on();

 private:
  bool before_;
};

/// layer(input), recomputed where a RecomputeLayers is on: what encoders call. `parameters` as for recomputed().
template <typename Layer>
[[nodiscard]] Tensor run_layer(Layer layer, const Tensor& input, const std::vector<Tensor>& parameters) {
  return RecomputeLayers::is_on() ? recomputed(std::function<Tensor(const Tensor&)>(std::move(layer)), input, parameters) : layer(input);
}
/// The same with the parameters of the module that the layer is.
template <typename Layer>
[[nodiscard]] Tensor run_layer(Layer layer, const Tensor& input, const torch::nn::Module& owner) {
  return RecomputeLayers::is_on() ? recomputed(std::function<Tensor(const Tensor&)>(std::move(layer)), input, owner.parameters()) : layer(input);
}

}  // namespace uqa::models
