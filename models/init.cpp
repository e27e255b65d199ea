#include "models/init.h"

#include <cmath>
#include <numbers>

#include "core/error.h"
#include "core/random.h"

#include <ATen/Parallel.h>

namespace uqa::models {
namespace {

/// Two independent standard normals from two words.
std::array<double, 2> box_muller(std::uint32_t a, std::uint32_t b) {
  const double radius = std::sqrt(-2 * std::log((a + 1.0) * 0x1p-32));
  const double angle = 2 * std::numbers::pi * b * 0x1p-32;
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

/// x[i] = draw(key, index of i in the whole parameter) for every element.
template <typename Draw>
void fill(const Tensor& x, std::uint64_t seed, const std::string& name, const ParameterLayout& layout, const Draw& draw) {
  UQA_CHECK(x.scalar_type() == at::kFloat && x.is_contiguous(), ErrorCode::kInternal, "initial weights of {}: must be contiguous float32", name);
  const auto key = stream_key(seed, "init/" + name);
  const GlobalIndex index(x, layout);
  const auto on_cpu = x.is_cpu() ? x : at::empty(x.sizes(), at::kFloat);
  auto* values = on_cpu.mutable_data_ptr<float>();
  at::parallel_for(0, x.numel(), 4096, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) values[i] = static_cast<float>(draw(key, static_cast<std::uint64_t>(index(i))));
  });
  const at::NoGradGuard no_grad;
  if (!x.is_cpu()) x.copy_(on_cpu);
}

}  // namespace

void init_normal_(const Tensor& x, std::uint64_t seed, const std::string& name, double std_dev, const ParameterLayout& layout) {
  fill(x, seed, name, layout, [std_dev](std::uint64_t key, std::uint64_t i) {
    const auto words = philox(key, i);
    return std_dev * box_muller(words[0], words[1])[0];
  });
}

void init_truncated_normal_(const Tensor& x, std::uint64_t seed, const std::string& name, double std_dev, const ParameterLayout& layout) {
  fill(x, seed, name, layout, [std_dev](std::uint64_t key, std::uint64_t i) {
    for (std::uint64_t attempt = 0;; ++attempt) {
      const auto words = philox(key, i, attempt);
      for (const std::size_t first : {std::size_t{0}, std::size_t{2}}) {
        for (const double normal : box_muller(words[first], words[first + 1])) {
          if (std::abs(normal) <= 2) return std_dev * normal;
        }
      }
    }
  });
}

void init_uniform_(const Tensor& x, std::uint64_t seed, const std::string& name, double bound, const ParameterLayout& layout) {
  fill(x, seed, name, layout, [bound](std::uint64_t key, std::uint64_t i) { return bound * (2.0 * philox(key, i)[0] * 0x1p-32 - 1.0); });
}

void init_xavier_uniform_(const Tensor& x, std::uint64_t seed, const std::string& name, const ParameterLayout& layout) {
  UQA_CHECK(x.dim() == 2, ErrorCode::kInternal, "initial weights of {}: Xavier's bound needs a matrix", name);
  const auto shape = global_shape_of(x, layout);
  init_uniform_(x, seed, name, std::sqrt(6.0 / static_cast<double>(shape[0] + shape[1])), layout);
}

void init_linear_default_(const Tensor& weight, const Tensor& bias, std::uint64_t seed, const std::string& name, const ParameterLayout& weight_layout,
                          const ParameterLayout& bias_layout) {
  const double bound = 1 / std::sqrt(static_cast<double>(global_shape_of(weight, weight_layout)[1]));
  init_uniform_(weight, seed, name + ".weight", bound, weight_layout);
  if (bias.defined()) init_uniform_(bias, seed, name + ".bias", bound, bias_layout);
}

}  // namespace uqa::models
