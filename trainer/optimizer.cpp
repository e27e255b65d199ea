#include "trainer/optimizer.h"

#include "core/error.h"

namespace uqa::trainer {

Optimizer::Optimizer(std::vector<NamedParameter> parameters, OptimConfig config) : parameters_(std::move(parameters)), config_(std::move(config)) {
  UQA_CHECK(!parameters_.empty(), ErrorCode::kConfig, "trained parameters = 0, at least one is required; freeze less");
  const bool adamw = config_.kind == "adamw";
  for (std::size_t i = 0; i < parameters_.size(); ++i) groups_[parameters_[i].lr_scale].push_back(i);
  for (const auto& [name, tensor, lr_scale, layout] : parameters_) {
    UQA_CHECK(lr_scale > 0, ErrorCode::kInternal, "parameter {}: lr_scale = {}, must be > 0", name, lr_scale);
    models::check_layout(name, tensor, layout);
    UQA_CHECK(tensor.scalar_type() == at::kFloat && tensor.is_contiguous() && tensor.requires_grad(), ErrorCode::kInternal,
              "parameter {}: dtype {}, contiguous {}, requires_grad {}; must be a contiguous float32 leaf", name,
              c10::toString(tensor.scalar_type()), tensor.is_contiguous(), tensor.requires_grad());
    const auto device = parameters_.front().tensor.device();
    UQA_CHECK(tensor.device() == device, ErrorCode::kInternal, "parameter {}: is on {}, parameter {} on {}; all must be on one device", name, tensor.device().str(),
              parameters_.front().name, device.str());
    values_.push_back(tensor.detach());
    if (!adamw) continue;
    first_.push_back(at::zeros_like(values_.back()));
    second_.push_back(at::zeros_like(values_.back()));
  }
  if (adamw) step_count_ = at::zeros({}, values_.front().options());
}

Tensor Optimizer::gradient_of(std::size_t i) const {
  const Tensor& grad = parameters_[i].tensor.grad();
  if (!grad.defined()) return {};
  UQA_CHECK(grad.is_contiguous() && grad.scalar_type() == at::kFloat && grad.sizes() == values_[i].sizes(), ErrorCode::kInternal,
            "gradient of {}: contiguous {}, dtype {}; must be contiguous float32 of the parameter's shape", parameters_[i].name,
            grad.is_contiguous(), c10::toString(grad.scalar_type()));
  return grad.detach();
}

void Optimizer::step(double lr) {
  const at::NoGradGuard no_grad;
  ++updates_;
  std::vector<Tensor> grads;
  grads.reserve(values_.size());
  for (std::size_t i = 0; i < values_.size(); ++i) {
    auto grad = gradient_of(i);
    grads.push_back(grad.defined() ? grad : at::zeros_like(values_[i]));
  }
  if (config_.kind == "sgd") {
    for (std::size_t i = 0; i < values_.size(); ++i) {
      const double rate = lr * parameters_[i].lr_scale;
      if (config_.weight_decay > 0) values_[i].mul_(1 - rate * config_.weight_decay);
      values_[i].add_(grads[i], -rate);
    }
    return;
  }
  // The kernel divides by 1 - beta^step: steps are counted up before it, since 0 would give NaN.
  step_count_.fill_(static_cast<double>(updates_));
  for (const auto& [lr_scale, members] : groups_) {
    const auto of_group = [&](const std::vector<Tensor>& all) {
      std::vector<Tensor> some;
      for (const auto i : members) some.push_back(all[i]);
      return some;
    };
    at::_fused_adamw_(of_group(values_), of_group(grads), of_group(first_), of_group(second_), {}, std::vector<Tensor>(members.size(), step_count_), lr * lr_scale, config_.beta1, config_.beta2,
                      config_.weight_decay, config_.eps, /*amsgrad=*/false, /*maximize=*/false, std::nullopt, std::nullopt);
  }
}

void Optimizer::set_updates(std::int64_t updates) { updates_ = updates; }

std::vector<NamedParameter> Optimizer::state() const {
  std::vector<NamedParameter> all;
  for (std::size_t i = 0; i < first_.size(); ++i) {
    all.push_back({"optim.exp_avg." + parameters_[i].name, first_[i], 1, parameters_[i].layout});
    all.push_back({"optim.exp_avg_sq." + parameters_[i].name, second_[i], 1, parameters_[i].layout});
  }
  return all;
}

}  // namespace uqa::trainer
