#include "trainer/grad_reducer.h"

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <cmath>
#include <unordered_set>

#include "core/clock.h"

namespace uqa::trainer {

namespace {

// Gradients begin at cache lines; the gap is zeros, so it adds nothing to sums and norms.
constexpr std::int64_t kAlignElements = 16;

}  // namespace

struct GradReducer::Bucket {
  Tensor flat;                          ///< float32 [elements]
  std::vector<std::size_t> parameters;  ///< indices
  std::size_t num_ready = 0;            ///< in the armed backward
  comm::Work work;
};

struct GradReducer::State {
  std::vector<Tensor> parameters;
  std::vector<Tensor> views;  ///< gradient of each parameter
  std::vector<std::size_t> bucket_of;
  std::vector<Bucket> buckets;
  comm::Communicator dp;
  std::vector<char> ready;
  bool armed = false;
  std::size_t num_launched = 0;
  std::size_t num_done = 0;
  double exposed_s = 0;

  void mark_ready(std::size_t parameter) {
    if (!armed) return;
    Bucket& bucket = buckets[bucket_of[parameter]];
    UQA_CHECK(bucket_of[parameter] >= num_launched, ErrorCode::kInternal,
              "gradient of parameter {} was added to after its bucket was sent; do not arm() a backward that reaches a "
              "parameter twice",
              parameter);
    if (ready[parameter] == 0) {
      ready[parameter] = 1;
      ++bucket.num_ready;
    }
    const auto begin = Clock::now();
    while (num_launched < buckets.size() && buckets[num_launched].num_ready == buckets[num_launched].parameters.size())
      launch_next();
    progress();
    exposed_s += seconds_since(begin);
  }

  void launch_next() {
    Bucket& bucket = buckets[num_launched++];
    bucket.work = comm::all_reduce_async_(bucket.flat, comm::ReduceOp::kSum, dp);
  }

  /// MPI moves only inside its calls.
  void progress() {
    while (num_done < num_launched && buckets[num_done].work.test()) ++num_done;
  }
};

/// Marks one parameter ready. The parameter owns it; the reducer takes it away before it goes.
class GradReducer::Hook : public torch::autograd::PostAccumulateGradHook {
 public:
  Hook(State* state, std::size_t parameter) : state_(state), parameter_(parameter) {}
  void operator()(const torch::autograd::Variable&) override { state_->mark_ready(parameter_); }

 private:
  State* state_;
  std::size_t parameter_;
};

GradReducer::GradReducer(std::vector<Tensor> parameters, comm::Communicator dp, std::int64_t bucket_bytes)
    : state_(std::make_unique<State>()) {
  UQA_CHECK(bucket_bytes > 0, ErrorCode::kConfig, "parallel.bucket_bytes = {}, must be > 0; change it", bucket_bytes);
  State& state = *state_;
  state.dp = std::move(dp);
  state.parameters = std::move(parameters);
  state.views.resize(state.parameters.size());
  state.bucket_of.resize(state.parameters.size());
  state.ready.resize(state.parameters.size());
  std::unordered_set<const void*> seen;
  std::vector<std::int64_t> begins(state.parameters.size());
  std::vector<std::int64_t> sizes;  // elements of each bucket
  for (std::size_t i = state.parameters.size(); i-- > 0;) {
    const Tensor& parameter = state.parameters[i];
    UQA_CHECK(parameter.defined() && parameter.is_leaf() && parameter.requires_grad() &&
                  parameter.scalar_type() == at::kFloat && parameter.is_contiguous() && parameter.device().is_cpu(),
              ErrorCode::kInternal,
              "parameter {}: must be a contiguous float32 leaf on the CPU that requires a gradient", i);
    UQA_CHECK(seen.insert(parameter.unsafeGetTensorImpl()).second, ErrorCode::kInternal,
              "parameter {}: is given twice; give a shared one once", i);
    const std::int64_t elements = (parameter.numel() + kAlignElements - 1) / kAlignElements * kAlignElements;
    const bool full =
        sizes.empty() || (sizes.back() > 0 && (sizes.back() + elements) * std::int64_t{sizeof(float)} > bucket_bytes);
    if (full) {
      sizes.push_back(0);
      state.buckets.emplace_back();
    }
    begins[i] = sizes.back();
    sizes.back() += elements;
    state.bucket_of[i] = state.buckets.size() - 1;
    state.buckets.back().parameters.push_back(i);
  }
  for (std::size_t b = 0; b < sizes.size(); ++b) state.buckets[b].flat = at::zeros({sizes[b]}, at::kFloat);
  for (std::size_t i = 0; i < state.parameters.size(); ++i) {
    const Tensor& parameter = state.parameters[i];
    state.views[i] =
        state.buckets[state.bucket_of[i]].flat.narrow(0, begins[i], parameter.numel()).view(parameter.sizes());
    parameter.mutable_grad() = state.views[i];
    if (state.dp.size() > 1)
      torch::autograd::impl::set_post_acc_grad_hooks(parameter, std::make_unique<Hook>(state_.get(), i));
  }
}

GradReducer::~GradReducer() {
  if (state_->dp.size() == 1) return;
  for (const Tensor& parameter : state_->parameters) torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
}

void GradReducer::begin_step() {
  State& state = *state_;
  UQA_CHECK(state.num_launched == 0, ErrorCode::kInternal,
            "begin_step() inside a step whose gradients are on the way; call finish() first");
  for (Bucket& bucket : state.buckets) {
    bucket.flat.zero_();
    bucket.num_ready = 0;
  }
  std::fill(state.ready.begin(), state.ready.end(), '\0');
  state.armed = false;
  state.exposed_s = 0;
}

void GradReducer::arm() { state_->armed = state_->dp.size() > 1; }

double GradReducer::finish(double scale) {
  State& state = *state_;
  state.armed = false;
  for (std::size_t i = 0; i < state.parameters.size(); ++i) {
    const Tensor& gradient = state.parameters[i].grad();
    UQA_CHECK(gradient.defined() && gradient.const_data_ptr() == state.views[i].const_data_ptr(), ErrorCode::kInternal,
              "gradient of parameter {}: is no longer a view of its bucket; zero gradients with begin_step() only", i);
  }
  auto begin = Clock::now();
  while (state.num_launched < state.buckets.size()) state.launch_next();
  for (Bucket& bucket : state.buckets) {
    bucket.work.wait();
    state.exposed_s += seconds_since(begin);
    if (scale != 1.0) bucket.flat.mul_(scale);
    begin = Clock::now();
  }
  state.num_launched = 0;
  state.num_done = 0;
  return state.exposed_s;
}

std::vector<Tensor> GradReducer::gradients() const { return state_->views; }

double GradReducer::global_norm() const {
  double squares = 0;
  for (const Tensor& view : state_->views) {
    // One parameter at a time, so that the sum does not depend on how the buckets were cut.
    const double norm = at::linalg_vector_norm(view, 2, at::OptionalIntArrayRef{}, false, at::kDouble).item<double>();
    squares += norm * norm;
  }
  return std::sqrt(squares);
}

std::int64_t GradReducer::num_buckets() const { return static_cast<std::int64_t>(state_->buckets.size()); }

}  // namespace uqa::trainer
