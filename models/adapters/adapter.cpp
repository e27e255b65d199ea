#include "models/adapters/adapter.h"

#include <algorithm>
#include <array>

#include <ATen/Parallel.h>

#include "core/error.h"
#include "models/adapters/linear_adapter.h"
#include "models/adapters/mlp_adapter.h"
#include "models/adapters/query_adapters.h"
#include "models/layers/no_autocast.h"
#include "models/plain/feature_bags.h"
#include "models/tensor_io.h"

// T packed rows of B sequences, H width.

namespace uqa::models {
namespace {

constexpr std::int64_t kMostTokens = 64;

struct Starts : torch::CustomClassHolder {
  std::vector<std::int64_t> cu_seqlens;
  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(cu_seqlens.size()) - 1; }
};

/// Mean of every sequence's rows.
struct SequenceMean : torch::autograd::Function<SequenceMean> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, const c10::intrusive_ptr<Starts>& starts) {
    const NoAutocast no_autocast;
    const auto x_TH = x.to(at::kFloat).contiguous();
    const auto width = x_TH.size(1);
    auto mean_BH = at::zeros({starts->size(), width}, x_TH.options());
    const auto* in = x_TH.const_data_ptr<float>();
    auto* out = mean_BH.mutable_data_ptr<float>();
    at::parallel_for(0, starts->size(), 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t b = first; b < last; ++b) {
        const auto begin = starts->cu_seqlens[static_cast<std::size_t>(b)], end = starts->cu_seqlens[static_cast<std::size_t>(b) + 1];
        float* mean = out + b * width;
        for (auto t = begin; t < end; ++t) {
          for (std::int64_t j = 0; j < width; ++j) mean[j] += in[t * width + j];
        }
        for (std::int64_t j = 0; j < width; ++j) mean[j] /= static_cast<float>(end - begin);
      }
    });
    ctx->saved_data["starts"] = c10::IValue::make_capsule(starts);
    ctx->saved_data["type"] = static_cast<std::int64_t>(x.scalar_type());
    return mean_BH;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grad) {
    const NoAutocast no_autocast;
    const auto starts = c10::static_intrusive_pointer_cast<Starts>(ctx->saved_data["starts"].toCapsule());
    auto lengths_B = at::empty({starts->size()}, at::kLong);
    auto* lengths = lengths_B.mutable_data_ptr<std::int64_t>();
    for (std::int64_t b = 0; b < starts->size(); ++b) {
      lengths[b] = starts->cu_seqlens[static_cast<std::size_t>(b) + 1] - starts->cu_seqlens[static_cast<std::size_t>(b)];
    }
    const auto share_BH = grad[0] / lengths_B.unsqueeze(1);
    return {share_BH.repeat_interleave(lengths_B, 0).to(static_cast<at::ScalarType>(ctx->saved_data["type"].toInt())), {}};
  }
};

}  // namespace

void AdapterConfig::validate() const {
  constexpr std::array kKinds{"linear", "mlp", "last", "attention", "qformer"};
  UQA_CHECK(std::find(kKinds.begin(), kKinds.end(), kind) != kKinds.end(), ErrorCode::kConfig,
            "adapter.kind = {}, must be linear, mlp, last, attention or qformer; change --adapter.kind", kind);
  UQA_CHECK(num_tokens >= 1 && num_tokens <= kMostTokens, ErrorCode::kConfig, "adapter.tokens = {}, must be between 1 and {}; change --adapter.tokens", num_tokens,
            kMostTokens);
  const bool queries = kind == "attention" || kind == "qformer";
  UQA_CHECK(num_tokens == 1 || queries, ErrorCode::kConfig,
            "adapter.tokens = {} with adapter.kind = {}, which makes 1; choose --adapter.kind attention or qformer, or --adapter.tokens 1", num_tokens, kind);
  UQA_CHECK(inner >= 0, ErrorCode::kConfig, "adapter.inner = {}, must be >= 0 (0: the kind's own rule); change --adapter.inner", inner);
  UQA_CHECK(num_layers > 0, ErrorCode::kConfig, "adapter.layers = {}, must be > 0; change --adapter.layers", num_layers);
  UQA_CHECK(num_heads > 0, ErrorCode::kConfig, "adapter.heads = {}, must be > 0; change --adapter.heads", num_heads);
  UQA_CHECK(!queries || encoder_hidden % num_heads == 0, ErrorCode::kConfig,
            "adapter.heads = {}, must divide the encoder's width {}; change --adapter.heads", num_heads, encoder_hidden);
}

std::int64_t AdapterConfig::resolved_inner() const {
  if (inner > 0) return inner;
  return kind == "mlp" ? llm_hidden : 4 * encoder_hidden;
}

const char* name_of(StateView view) {
  switch (view) {
    case StateView::kMean: return "mean";
    case StateView::kLast: return "last";
    case StateView::kAll: return "all";
  }
  UQA_FAIL(ErrorCode::kInternal, "unknown state view {}", static_cast<int>(view));
}

std::map<std::string, Tensor> AdapterImpl::stored() const { return state_dict(*this); }

Adapter make_adapter(const AdapterConfig& config) {
  config.validate();
  if (config.kind == "mlp") return std::make_shared<MlpAdapterImpl>(config);
  if (config.kind == "attention") return std::make_shared<AttentionPoolAdapterImpl>(config);
  if (config.kind == "qformer") return std::make_shared<QFormerAdapterImpl>(config);
  return std::make_shared<LinearAdapterImpl>(config);
}

void require_histories(const Tensor& states_TH, const PackedLayout& layout) {
  UQA_CHECK(states_TH.dim() == 2 && states_TH.size(0) == layout.num_rows(), ErrorCode::kInternal, "adapter: {} encoder states for a layout of {} rows",
            states_TH.size(0), layout.num_rows());
  for (std::size_t b = 0; b + 1 < layout.cu_seqlens.size(); ++b) {
    UQA_CHECK(layout.cu_seqlens[b] < layout.cu_seqlens[b + 1], ErrorCode::kData, "adapter: sequence {} is empty, at least one interaction is required", b);
  }
}

Tensor history_means(const Tensor& states_TH, const PackedLayout& layout) {
  require_histories(states_TH, layout);
  if (!states_TH.is_cpu()) {
    const auto rows_T = at::arange(layout.num_rows(), states_TH.options().dtype(at::kLong));
    return plain::bag_means(states_TH.to(at::kFloat), rows_T, at::tensor(layout.cu_seqlens, at::kLong).to(states_TH.device()));
  }
  auto starts = c10::make_intrusive<Starts>();
  starts->cu_seqlens = layout.cu_seqlens;
  return SequenceMean::apply(states_TH, starts);
}

Tensor history_lasts(const Tensor& states_TH, const PackedLayout& layout) {
  require_histories(states_TH, layout);
  std::vector<std::int64_t> rows;
  for (std::size_t b = 0; b + 1 < layout.cu_seqlens.size(); ++b) rows.push_back(layout.cu_seqlens[b + 1] - 1);
  return states_TH.index_select(0, at::tensor(rows, at::kLong).to(states_TH.device())).to(at::kFloat);
}

}  // namespace uqa::models
