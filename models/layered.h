// models/layered.h - models made of layers that run one after the other, and someone who is told when a layer runs: its weights may be elsewhere
// until then (trainer/layer_shards.h).
//
//   for (std::size_t i = 0; i < layers.size(); ++i) x_TH = watched(i, [&] { return layers[i]->forward(x_TH); });   // inside a Layered
#pragma once

#include <cstdint>
#include <vector>

#include "models/packed.h"

namespace uqa::models {

/// Of layers that are modules: each one's parameters.
template <typename Layers>
[[nodiscard]] std::vector<std::vector<Tensor>> parameters_of_each(const Layers& layers) {
  std::vector<std::vector<Tensor>> parameters;
  for (const auto& layer : layers) parameters.push_back(layer->parameters());
  return parameters;
}

class LayerWatch {
 public:
  virtual ~LayerWatch() = default;
  /// Before layer `layer` reads its parameters in a forward pass.
  virtual void enter(std::int64_t layer) = 0;
  /// After it. `outputs` are all that later layers get from it; what is returned takes their place and has their values.
  [[nodiscard]] virtual std::vector<Tensor> leave(std::int64_t layer, std::vector<Tensor> outputs) = 0;
};

class Layered {
 public:
  virtual ~Layered() = default;
  /// The parameters of each layer, in the order in which layers run; those outside of all layers are absent.
  [[nodiscard]] virtual std::vector<std::vector<Tensor>> layer_parameters() const = 0;
  /// From now on `watch` is told, with layers counted from `first`; nullptr: nobody is. It must outlive the model or be taken away.
  void watch_layers(LayerWatch* watch, std::int64_t first) {
    watch_ = watch;
    first_ = first;
  }

 protected:
  void enter_layer(std::size_t layer) const {
    if (watch_ != nullptr) watch_->enter(first_ + static_cast<std::int64_t>(layer));
  }
  [[nodiscard]] std::vector<Tensor> leave_layer(std::size_t layer, std::vector<Tensor> outputs) const {
    return watch_ == nullptr ? outputs : watch_->leave(first_ + static_cast<std::int64_t>(layer), std::move(outputs));
  }
  /// Runs a layer with one output.
  template <typename Run>
  [[nodiscard]] Tensor watched(std::size_t layer, const Run& run) const {
    enter_layer(layer);
    return leave_layer(layer, {run()}).front();
  }

 private:
  LayerWatch* watch_ = nullptr;
  std::int64_t first_ = 0;
};

}  // namespace uqa::models
