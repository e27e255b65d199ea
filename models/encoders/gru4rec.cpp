#include "models/encoders/gru4rec.h"

#include <cmath>

#include "models/init.h"
#include "models/layers/dropout.h"
#include "models/layers/linear.h"
#include "models/layers/norm.h"
#include "models/layers/packed_gru.h"
#include "models/recompute.h"

// T packed rows, H width of the encoder, F width of the recurrent state.

namespace uqa::models {
namespace {

struct Layer {
  Tensor weight_ih, weight_hh;
};

/// Only there to give parameters the reference's names.
struct Names : torch::nn::Module {};

}  // namespace

struct Gru4RecImpl::Modules {
  std::vector<Layer> layers;
  Linear dense{nullptr};
  LayerNorm norm{nullptr};
  double dropout = 0;
};

Gru4RecImpl::Gru4RecImpl(const UserModelConfig& config) : modules_(std::make_shared<Modules>()) {
  const auto width = config.resolved_inner();
  const auto gru = register_module("gru_layers", std::make_shared<Names>());
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    const auto index = std::to_string(i);
    modules_->layers.push_back({.weight_ih = gru->register_parameter("weight_ih_l" + index, at::zeros({3 * width, i == 0 ? config.hidden : width})),
                                .weight_hh = gru->register_parameter("weight_hh_l" + index, at::zeros({3 * width, width}))});
  }
  modules_->dense = register_module("dense", Linear(width, config.hidden, Bias::kYes));
  modules_->norm = register_module("norm", LayerNorm(config.hidden, config.norm_eps));
  modules_->dropout = config.dropout;
}

Tensor Gru4RecImpl::forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context) {
  auto state_TF = x_TH;
  for (std::size_t i = 0; i < modules_->layers.size(); ++i) {
    const auto& layer = modules_->layers[i];
    const auto run = [layer, starts = layout.cu_seqlens](const Tensor& x) { return packed_gru(at::linear(x, layer.weight_ih), layer.weight_hh, starts); };
    state_TF = watched(i, [&] { return run_layer(run, state_TF, {layer.weight_ih, layer.weight_hh}); });
  }
  // The reference drops behind the last layer only.
  if (is_training()) state_TF = dropout(state_TF, modules_->dropout, dropout_key(context, -1, DropoutSite::kFfnInner), layout);
  return modules_->norm->forward(modules_->dense->forward(state_TF).to(x_TH.scalar_type()));
}

std::vector<std::vector<Tensor>> Gru4RecImpl::layer_parameters() const {
  std::vector<std::vector<Tensor>> parameters;
  for (const auto& layer : modules_->layers) parameters.push_back({layer.weight_ih, layer.weight_hh});
  return parameters;
}

void Gru4RecImpl::init_weights(std::uint64_t seed, const std::string& prefix) {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < modules_->layers.size(); ++i) {
    const auto& layer = modules_->layers[i];
    const auto index = std::to_string(i), name_ih = prefix + "gru_layers.weight_ih_l" + index, name_hh = prefix + "gru_layers.weight_hh_l" + index;
    if (i == 0) {
      init_xavier_uniform_(layer.weight_ih, seed, name_ih);
      init_xavier_uniform_(layer.weight_hh, seed, name_hh);
    } else {  // the reference leaves them at torch.nn.GRU's default
      const double bound = 1 / std::sqrt(static_cast<double>(layer.weight_hh.size(1)));
      init_uniform_(layer.weight_ih, seed, name_ih, bound);
      init_uniform_(layer.weight_hh, seed, name_hh, bound);
    }
  }
  init_linear_default_(modules_->dense->weight, modules_->dense->bias, seed, prefix + "dense");
  modules_->norm->weight.fill_(1);
  modules_->norm->bias.zero_();
}

}  // namespace uqa::models
