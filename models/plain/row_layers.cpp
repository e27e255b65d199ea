#include "models/plain/row_layers.h"

#include "models/layers/no_autocast.h"

namespace uqa::models::plain {
namespace {

/// x / sqrt(mean(x^2) + eps) over the last dimension.
Tensor divided_by_rms(const Tensor& x, double eps) { return x * (x.square().mean(-1, /*keepdim=*/true) + eps).rsqrt(); }

}  // namespace

Tensor rms_norm(const Tensor& x_TF, const Tensor& weight_F, double eps) {
  const NoAutocast no_autocast;
  return (divided_by_rms(x_TF.to(weight_F.scalar_type()), eps) * weight_F).to(x_TF.scalar_type());
}

Tensor gated_rms_norm(const Tensor& y_TI, const Tensor& z_TI, const Tensor& weight_I, std::int64_t num_groups, double eps) {
  const NoAutocast no_autocast;
  const auto gated_TGE = (y_TI * at::silu(z_TI)).reshape({y_TI.size(0), num_groups, y_TI.size(1) / num_groups});
  return divided_by_rms(gated_TGE, eps).flatten(1) * weight_I;
}

Tensor turned_halves(const Tensor& x_TND, const Tensor& cos_TE, const Tensor& sin_TE) {
  const NoAutocast no_autocast;
  const auto compute = x_TND.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto halves = x_TND.to(compute).chunk(2, -1);
  const auto cos = cos_TE.to(compute).unsqueeze(1), sin = sin_TE.to(compute).unsqueeze(1);
  return at::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, -1).to(x_TND.scalar_type());
}

}  // namespace uqa::models::plain
