#include "models/llm/lora.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include "core/error.h"
#include "core/random.h"

namespace uqa::models::llm {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Where each LoRA projection's columns and output rows lie: four numbers a projection (lora_begin, rank, begin, size).
using BlockList = std::vector<std::int64_t>;

struct FrozenLinear : torch::autograd::Function<FrozenLinear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_TL, const Tensor& weight_NL, const std::optional<Tensor>& a,
                        const std::optional<Tensor>& b, std::int64_t width, double scale, const BlockList& blocks) {
    if (!a.has_value()) {
      ctx->saved_data["weight"] = weight_NL;
      return at::mm(x_TL, weight_NL.t());
    }
    const Tensor &a_RK = *a, &b_NR = *b;
    const std::int64_t rank_columns = a_RK.size(0);
    auto input_TL = x_TL;
    if (x_TL.size(1) == width) {
      input_TL = at::empty({x_TL.size(0), width + rank_columns}, x_TL.options());
      input_TL.narrow(1, 0, width).copy_(x_TL);
    }
    const auto a_half_RK = a_RK.to(x_TL.scalar_type());
    auto low_TR = input_TL.narrow(1, width, rank_columns);
    low_TR.copy_(at::mm(input_TL.narrow(1, 0, width), a_half_RK.t()));
    std::int64_t row = 0;
    for (std::size_t i = 0; i < blocks.size(); i += 4) {
      const std::int64_t rank = blocks[i + 1], size = blocks[i + 3];
      auto corner = weight_NL.narrow(0, blocks[i + 2], size).narrow(1, width + blocks[i], rank);
      corner.copy_(b_NR.narrow(0, row, size) * scale);
      row += size;
    }
    ctx->saved_data["weight"] = weight_NL;  // not save_for_backward: the next forward writes B into it again
    ctx->saved_data["width"] = width;
    ctx->saved_data["input_width"] = x_TL.size(1);
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["blocks"] = blocks;
    ctx->save_for_backward({input_TL, a_half_RK});
    return at::mm(input_TL, weight_NL.t());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto weight_NL = ctx->saved_data["weight"].toTensor();
    const auto dy_TN = grads[0].contiguous();
    if (ctx->saved_data.count("blocks") == 0) return {at::mm(dy_TN, weight_NL), Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};

    const auto saved = ctx->get_saved_variables();
    const Tensor &input_TL = saved[0], &a_half_RK = saved[1];
    const auto width = ctx->saved_data["width"].toInt(), input_width = ctx->saved_data["input_width"].toInt();
    const auto scale = ctx->saved_data["scale"].toDouble();
    const auto blocks = ctx->saved_data["blocks"].toIntVector();
    const std::int64_t rank_columns = a_half_RK.size(0);

    Tensor dx_TL, dlow_TR;
    if (ctx->needs_input_grad(0)) {
      dx_TL = at::mm(dy_TN, weight_NL);
      dlow_TR = dx_TL.narrow(1, width, rank_columns);
      dx_TL.narrow(1, 0, width).addmm_(dlow_TR, a_half_RK);
    } else {
      dlow_TR = at::mm(dy_TN, weight_NL.narrow(1, width, rank_columns));
    }
    Tensor da_RK, db_NR;
    if (ctx->needs_input_grad(2)) da_RK = at::mm(dlow_TR.t(), input_TL.narrow(1, 0, width)).to(at::kFloat);
    if (ctx->needs_input_grad(3)) {
      std::vector<Tensor> parts;
      for (std::size_t i = 0; i < blocks.size(); i += 4) {
        const auto low_TR = input_TL.narrow(1, width + blocks[i], blocks[i + 1]);
        // The transposed product is twice as fast here: its long side is contiguous.
        parts.push_back(at::mm(low_TR.t(), dy_TN.narrow(1, blocks[i + 2], blocks[i + 3])).t().to(at::kFloat).mul_(scale));
      }
      db_NR = at::cat(parts, 0).contiguous();
    }
    if (dx_TL.defined() && input_width == width) dx_TL = dx_TL.narrow(1, 0, width);
    return {dx_TL, Tensor(), da_RK, db_NR, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

std::string target_of(const std::string& projection) { return projection.substr(projection.rfind('.') + 1); }

void validate(const LoraOptions& options) {
  static const std::set<std::string> known = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  UQA_CHECK(options.rank >= 0, ErrorCode::kConfig, "lora.rank = {}, must be 0 (no LoRA) or above", options.rank);
  if (options.rank == 0) return;
  UQA_CHECK(std::isfinite(options.alpha) && options.alpha >= 0, ErrorCode::kConfig, "lora.alpha = {}, must be above 0, or 0 for 2 * rank",
            options.alpha);
  UQA_CHECK(!options.targets.empty(), ErrorCode::kConfig, "lora.targets is empty, must name projections; set lora.rank = 0 for no LoRA");
  std::set<std::string> seen;
  for (const auto& target : options.targets) {
    UQA_CHECK(known.count(target) == 1, ErrorCode::kConfig, "lora.targets has '{}', known are {}", target, fmt::join(known, ", "));
    UQA_CHECK(seen.insert(target).second, ErrorCode::kConfig, "lora.targets has '{}' twice, name it once", target);
  }
}

Projection projection(std::string name, const SliceRange& rows, std::int64_t full_size, comm::Communicator sharers) {
  Projection p;
  p.name = std::move(name);
  p.size = rows.length;
  p.first = rows.begin;
  p.full_size = full_size;
  p.sharers = std::move(sharers);
  return p;
}

FusedLinear::FusedLinear(std::vector<Projection> projections, const SliceRange& columns, std::int64_t full_in, LinearSplit split,
                         const LinearSettings& settings)
    : projections_(std::move(projections)),
      in_features_(columns.length),
      first_in_(columns.begin),
      full_in_(full_in),
      split_(split),
      settings_(settings) {
  const auto& lora = settings_.lora;
  const auto master = at::TensorOptions().dtype(at::kFloat);
  if (lora.rank > 0) scale_ = (lora.alpha > 0 ? lora.alpha : 2.0 * static_cast<double>(lora.rank)) / static_cast<double>(lora.rank);
  std::int64_t rows = 0;
  for (auto& p : projections_) {
    p.begin = rows;
    rows += p.size;
    if (settings_.trainable) p.weight_NK = at::zeros({p.size, in_features_}, master).requires_grad_(true);
    if (lora.rank == 0 || std::ranges::find(lora.targets, target_of(p.name)) == lora.targets.end()) continue;
    p.lora_begin = lora_columns_;
    lora_columns_ += lora.rank;
    p.a_RK = at::zeros({lora.rank, in_features_}, master).requires_grad_(true);
    p.b_NR = at::zeros({p.size, lora.rank}, master).requires_grad_(true);
  }
  if (!settings_.trainable) weight_NL_ = at::zeros({rows, in_features_ + lora_columns_}, master.dtype(settings_.dtype));
}

std::vector<Tensor> FusedLinear::shared_ones(Tensor Projection::*member) const {
  std::vector<Tensor> all, shared;
  const comm::Communicator* sharers = nullptr;
  for (const auto& p : projections_) {
    if (!(p.*member).defined() || p.sharers.size() == 1) continue;
    sharers = &p.sharers;  // of keys and values, which have the same
    shared.push_back(p.*member);
  }
  if (sharers != nullptr) shared = copy_all_to(shared, *sharers);
  std::size_t next = 0;
  for (const auto& p : projections_) {
    if ((p.*member).defined()) all.push_back(p.sharers.size() == 1 ? p.*member : shared[next++]);
  }
  return all;
}

Tensor FusedLinear::operator()(const Tensor& x_TL) {
  const auto& comm = settings_.tp.comm;
  if (settings_.trainable) {
    auto weights = shared_ones(&Projection::weight_NK);
    for (auto& weight : weights) weight = weight.to(settings_.dtype);
    return at::linear(x_TL, weights.size() == 1 ? weights[0] : at::cat(weights, 0));
  }
  if (lora_columns_ == 0) return FrozenLinear::apply(x_TL, weight_NL_, std::nullopt, std::nullopt, in_features_, scale_, BlockList());
  std::vector<Tensor> a;
  BlockList blocks;
  for (const auto& p : projections_) {
    if (p.lora_begin < 0) continue;
    a.push_back(p.a_RK);
    blocks.insert(blocks.end(), {p.lora_begin, settings_.lora.rank, p.begin, p.size});
  }
  // Each rank sees its outputs' part of the gradient of a whole A, and its inputs' part of that of a whole B.
  auto a_RK = at::cat(a, 0), b_NR = at::cat(shared_ones(&Projection::b_NR), 0);
  (split_ == LinearSplit::kColumns ? a_RK : b_NR) = copy_to(split_ == LinearSplit::kColumns ? a_RK : b_NR, comm);
  return FrozenLinear::apply(x_TL, weight_NL_, std::optional<Tensor>(a_RK), std::optional<Tensor>(b_NR), in_features_, scale_, blocks);
}

void FusedLinear::init_lora(std::uint64_t seed, std::int64_t layer) {
  const float bound = 1.0f / std::sqrt(static_cast<float>(full_in_));
  for (auto& p : projections_) {
    if (p.lora_begin < 0) continue;
    const auto key = stream_key(seed, fmt::format("lora.{}.{}.A", layer, target_of(p.name)));
    auto* a = p.a_RK.mutable_data_ptr<float>();
    for (std::int64_t i = 0; i < p.a_RK.numel(); ++i) {
      const auto element = i / in_features_ * full_in_ + first_in_ + i % in_features_;
      const auto words = philox(key, static_cast<std::uint64_t>(element) / 4);
      a[i] = bound * (2.0f * uniform(words[static_cast<std::size_t>(element % 4)]) - 1.0f);
    }
    const at::NoGradGuard no_grad;
    p.b_NR.zero_();
  }
}

void FusedLinear::to(at::Device device, bool non_blocking) {
  if (weight_NL_.defined()) weight_NL_ = weight_NL_.to(device, non_blocking);
}

void FusedLinear::set_weight(const std::string& projection, const Tensor& weight_NK) {
  const at::NoGradGuard no_grad;
  for (auto& p : projections_) {
    if (p.name != projection) continue;
    auto target = settings_.trainable ? p.weight_NK : weight_NL_.narrow(0, p.begin, p.size).narrow(1, 0, in_features_);
    target.copy_(weight_NK.narrow(0, p.first, p.size).narrow(1, first_in_, in_features_));
    return;
  }
  UQA_FAIL(ErrorCode::kInternal, "projection '{}' is not part of this linear layer", projection);
}

ParameterLayout FusedLinear::rows_layout(const Projection& p, std::int64_t width) const {
  if (p.size == p.full_size) return {};
  return {.axis = ShardAxis::kTp,
          .global_shape = {p.full_size, width},
          .dim = 0,
          .ranges = {{.begin = p.first, .length = p.size, .copies = p.sharers.size() * settings_.tp.replicas}}};
}

ParameterLayout FusedLinear::weight_layout(const Projection& p) const {
  if (split_ == LinearSplit::kColumns) return rows_layout(p, full_in_);
  if (in_features_ == full_in_) return {};
  return {.axis = ShardAxis::kTp,
          .global_shape = {p.full_size, full_in_},
          .dim = 1,
          .ranges = {{.begin = first_in_, .length = in_features_, .copies = settings_.tp.replicas}}};
}

ParameterLayout FusedLinear::a_layout(const Projection& p) const {
  if (split_ == LinearSplit::kColumns || in_features_ == full_in_) return {};
  auto layout = weight_layout(p);
  layout.global_shape[0] = settings_.lora.rank;
  return layout;
}

ParameterLayout FusedLinear::b_layout(const Projection& p) const {
  return split_ == LinearSplit::kColumns ? rows_layout(p, settings_.lora.rank) : ParameterLayout{};
}

Tensor FusedLinear::merged_weight(const Projection& p) const {
  const at::NoGradGuard no_grad;
  if (settings_.trainable) return p.weight_NK.detach().clone();
  auto weight_NK = weight_NL_.narrow(0, p.begin, p.size).narrow(1, 0, in_features_).to(at::kFloat).contiguous().clone();
  if (p.lora_begin >= 0) weight_NK.addmm_(p.b_NR, p.a_RK, 1, scale_);
  return weight_NK;
}

}  // namespace uqa::models::llm
