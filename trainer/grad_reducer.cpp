#include "trainer/grad_reducer.h"

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <unordered_set>

#include "core/clock.h"

namespace uqa::trainer {

namespace {

// Gradients begin at cache lines; the gap is zeros, so it adds nothing to sums and norms.
constexpr std::int64_t kAlignElements = 16;

using models::ShardAxis;
constexpr std::size_t kNumAxes = 5;  // of ShardAxis

/// A piece of a gradient that `copies` ranks hold alike.
struct NormPiece {
  std::size_t parameter;
  double copies;
};

/// Norms of the pieces, float64, in host memory: one copy from the device for all of them.
class PieceNorms {
 public:
  void add(std::size_t parameter, const Tensor& gradient, const models::ParameterLayout& layout) {
    const auto& ranges = layout.ranges;
    if (std::ranges::all_of(ranges, [](const auto& range) { return range.copies == 1; })) return add_piece({parameter, 1}, gradient);
    std::int64_t begin = 0;
    for (const auto& range : ranges) {
      add_piece({parameter, static_cast<double>(range.copies)}, gradient.narrow(layout.dim, begin, range.length));
      begin += range.length;
    }
  }
  /// Sum of squares of each of `num_parameters` gradients, in which the ranks that hold copies of a range share it.
  [[nodiscard]] std::vector<double> squares(std::size_t num_parameters) const {
    std::vector<double> squares(num_parameters, 0);
    if (norms_.empty()) return squares;
    const Tensor norms = at::stack(norms_).cpu();
    const auto* const values = norms.const_data_ptr<double>();
    for (std::size_t i = 0; i < pieces_.size(); ++i) squares[pieces_[i].parameter] += values[i] * values[i] / pieces_[i].copies;
    return squares;
  }

 private:
  void add_piece(NormPiece piece, const Tensor& x) {
    pieces_.push_back(piece);
    norms_.push_back(at::linalg_vector_norm(x, 2, at::OptionalIntArrayRef{}, false, at::kDouble));
  }
  std::vector<NormPiece> pieces_;
  std::vector<Tensor> norms_;
};

std::size_t index_of(ShardAxis axis) { return static_cast<std::size_t>(axis); }

using PerAxis = std::array<comm::Communicator, kNumAxes>;

PerAxis slices_of(const comm::Mesh& mesh) { return {comm::Communicator(), mesh.tp(), mesh.table(), mesh.dp(), mesh.world()}; }

double norm_of(const std::vector<NamedParameter>& parameters, const std::vector<Tensor>& gradients, const PerAxis& slices) {
  const at::NoGradGuard no_grad;
  // One parameter at a time, so that the sum does not depend on how the buckets were cut.
  PieceNorms norms;
  for (std::size_t i = 0; i < parameters.size(); ++i) norms.add(i, gradients[i], parameters[i].layout);
  const auto of_parameter = norms.squares(parameters.size());
  std::array<double, kNumAxes> squares{};
  std::array<bool, kNumAxes> present{};
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto axis = index_of(parameters[i].layout.axis);
    squares[axis] += of_parameter[i];
    present[axis] = true;
  }
  double sum = 0;
  for (std::size_t axis = 0; axis < kNumAxes; ++axis) {
    if (present[axis]) sum += comm::sum_in_order(squares[axis], slices[axis]);
  }
  return std::sqrt(sum);
}

std::vector<NamedParameter> replicated(const std::vector<Tensor>& tensors) {
  std::vector<NamedParameter> parameters;
  for (const Tensor& tensor : tensors) parameters.push_back({std::to_string(parameters.size()), tensor});
  return parameters;
}

}  // namespace

/// What happens to the gradients of each layout.
struct GradReducer::Axes {
  PerAxis sum;     ///< where gradients are summed
  PerAxis slices;  ///< whose ranks hold the other slices
};

struct GradReducer::Bucket {
  Tensor flat;                          ///< float32 [elements]
  std::vector<std::size_t> parameters;  ///< indices
  std::size_t num_ready = 0;            ///< in the armed backward
  comm::Communicator axis;              ///< where it is summed
  comm::Work work;
  [[nodiscard]] bool ready() const { return axis.size() == 1 || num_ready == parameters.size(); }
};

struct GradReducer::State {
  std::vector<NamedParameter> parameters;
  std::vector<Tensor> views;  ///< gradient of each parameter
  std::vector<std::size_t> bucket_of;
  std::vector<Bucket> buckets;
  Axes axes;
  bool any_sent = false;  ///< some bucket has an axis of more than one rank
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
              parameters[parameter].name);
    if (ready[parameter] == 0) {
      ready[parameter] = 1;
      ++bucket.num_ready;
    }
    const auto begin = Clock::now();
    while (num_launched < buckets.size() && buckets[num_launched].ready()) launch_next();
    progress();
    exposed_s += seconds_since(begin);
  }

  void launch_next() {
    Bucket& bucket = buckets[num_launched++];
    bucket.work = comm::all_reduce_async_(bucket.flat, comm::ReduceOp::kSum, bucket.axis);
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

GradReducer::GradReducer(const std::vector<NamedParameter>& parameters, const comm::Mesh& mesh, std::int64_t bucket_bytes)
    : GradReducer(parameters,
                  Axes{.sum = {mesh.dp(), mesh.dp(), mesh.table_replica(), comm::Communicator(), comm::Communicator()}, .slices = slices_of(mesh)},
                  bucket_bytes) {}

GradReducer::GradReducer(const std::vector<Tensor>& parameters, const comm::Communicator& dp, std::int64_t bucket_bytes)
    : GradReducer(replicated(parameters), Axes{.sum = {dp, {}, {}, {}, {}}, .slices = {}}, bucket_bytes) {}

GradReducer::GradReducer(const std::vector<NamedParameter>& parameters, const Axes& axes, std::int64_t bucket_bytes)
    : state_(std::make_unique<State>()) {
  UQA_CHECK(bucket_bytes > 0, ErrorCode::kConfig, "parallel.bucket_bytes = {}, must be > 0; change it", bucket_bytes);
  State& state = *state_;
  state.axes = axes;
  state.parameters = parameters;
  state.views.resize(state.parameters.size());
  state.bucket_of.resize(state.parameters.size());
  state.ready.resize(state.parameters.size());
  std::unordered_set<const void*> seen;
  std::vector<std::int64_t> begins(state.parameters.size());
  std::vector<std::int64_t> sizes;  // elements of each bucket
  std::array<std::size_t, kNumAxes> open{};  // the bucket that takes the next parameter of an axis, plus 1
  for (std::size_t i = state.parameters.size(); i-- > 0;) {
    const auto& [name, parameter, lr_scale, layout] = state.parameters[i];
    UQA_CHECK(parameter.defined() && parameter.is_leaf() && parameter.requires_grad() &&
                  parameter.scalar_type() == at::kFloat && parameter.is_contiguous() && parameter.device() == parameters.front().tensor.device(),
              ErrorCode::kInternal,
              "parameter {}: must be a contiguous float32 leaf that requires a gradient, on the device of the others", name);
    UQA_CHECK(layout.axis != ShardAxis::kDp && layout.axis != ShardAxis::kDpTp, ErrorCode::kInternal,
              "parameter {}: is sharded over dp, which these buckets cannot sum; keep the parameter replicated", name);
    models::check_layout(name, parameter, layout);
    UQA_CHECK(seen.insert(parameter.unsafeGetTensorImpl()).second, ErrorCode::kInternal,
              "parameter {}: is given twice; give a shared one once", name);
    const std::int64_t elements = (parameter.numel() + kAlignElements - 1) / kAlignElements * kAlignElements;
    // Replicated and tp-sharded parameters are summed alike and share buckets.
    const std::size_t axis = index_of(layout.axis == ShardAxis::kTp ? ShardAxis::kReplicated : layout.axis);
    const auto would_have = [&] { return (sizes[open[axis] - 1] + elements) * std::int64_t{sizeof(float)}; };
    if (open[axis] == 0 || (sizes[open[axis] - 1] > 0 && would_have() > bucket_bytes)) {
      sizes.push_back(0);
      state.buckets.emplace_back().axis = state.axes.sum[axis];
      open[axis] = state.buckets.size();
    }
    const std::size_t bucket = open[axis] - 1;
    begins[i] = sizes[bucket];
    sizes[bucket] += elements;
    state.bucket_of[i] = bucket;
    state.buckets[bucket].parameters.push_back(i);
  }
  for (std::size_t b = 0; b < sizes.size(); ++b) state.buckets[b].flat = at::zeros({sizes[b]}, parameters.front().tensor.options().requires_grad(false));
  for (std::size_t i = 0; i < state.parameters.size(); ++i) {
    const Tensor& parameter = state.parameters[i].tensor;
    const Bucket& bucket = state.buckets[state.bucket_of[i]];
    state.views[i] = bucket.flat.narrow(0, begins[i], parameter.numel()).view(parameter.sizes());
    parameter.mutable_grad() = state.views[i];
    if (bucket.axis.size() == 1) continue;
    state.any_sent = true;
    torch::autograd::impl::set_post_acc_grad_hooks(parameter, std::make_unique<Hook>(state_.get(), i));
  }
}

GradReducer::~GradReducer() {
  if (!state_) return;
  for (std::size_t i = 0; i < state_->parameters.size(); ++i) {
    if (state_->buckets[state_->bucket_of[i]].axis.size() > 1)
      torch::autograd::impl::set_post_acc_grad_hooks(state_->parameters[i].tensor, nullptr);
  }
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

void GradReducer::arm() { state_->armed = state_->any_sent; }

double GradReducer::finish(double scale) {
  State& state = *state_;
  state.armed = false;
  for (std::size_t i = 0; i < state.parameters.size(); ++i) {
    const Tensor& gradient = state.parameters[i].tensor.grad();
    const Tensor& view = state.views[i];
    UQA_CHECK(gradient.defined() && gradient.is_alias_of(view) && gradient.storage_offset() == view.storage_offset(), ErrorCode::kInternal,
              "gradient of parameter {}: is no longer a view of its bucket; zero gradients with begin_step() only",
              state.parameters[i].name);
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

double GradReducer::global_norm() const { return norm_of(state_->parameters, state_->views, state_->axes.slices); }

double gradient_norm(const std::vector<NamedParameter>& parameters, const std::vector<Tensor>& gradients, const comm::Mesh& mesh) {
  UQA_CHECK(parameters.size() == gradients.size(), ErrorCode::kInternal, "{} parameters and {} gradients, must be equal", parameters.size(), gradients.size());
  return norm_of(parameters, gradients, slices_of(mesh));
}

std::int64_t GradReducer::num_buckets() const { return static_cast<std::int64_t>(state_->buckets.size()); }

}  // namespace uqa::trainer
