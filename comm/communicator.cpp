// The public collectives: checks, groups of one, bfloat16 through float32, what was sent; transports do the rest.
#include "comm/communicator.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <numeric>
#include <thread>

#include "comm/backend.h"
#include "comm/device.h"
#include "core/log.h"

namespace uqa::comm {

using detail::Elements;
using detail::ElementType;

std::int64_t& detail::max_message_elements() {
  static std::int64_t elements = std::int64_t{1} << 30;
  return elements;
}

Work::Work() = default;
Work::Work(std::unique_ptr<detail::Pending> pending) : pending_(std::move(pending)) {}
Work::Work(Work&&) noexcept = default;
Work::~Work() { settle(); }

Work& Work::operator=(Work&& other) noexcept {
  if (this != &other) {
    settle();
    pending_ = std::move(other.pending_);
  }
  return *this;
}

void Work::wait() {
  // Dropped even when it throws: a failed collective cannot be waited for again.
  if (const auto pending = std::move(pending_)) pending->wait();
}

bool Work::test() {
  if (pending_ && pending_->test()) pending_.reset();
  return !pending_;
}

void Work::settle() noexcept {
  try {
    if (std::uncaught_exceptions() == 0) return wait();
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    while (!test() && std::chrono::steady_clock::now() < until)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  } catch (const std::exception& error) {
    log::error("comm", "a collective that nobody waited for failed: {}", error.what());
  }
  // The transport may still write; the process is on its way out.
  static_cast<void>(pending_.release());
}

Communicator::Communicator() : backend_(detail::make_serial_backend("self")) {}
Communicator::Communicator(std::shared_ptr<detail::Backend> backend) : backend_(std::move(backend)) {}
int Communicator::rank() const { return backend_->rank(); }
int Communicator::size() const { return backend_->size(); }
const std::string& Communicator::axis() const { return backend_->axis(); }
std::int64_t Communicator::bytes_sent() const { return backend_->bytes_sent(); }
detail::Backend& Communicator::backend() const { return *backend_; }
at::Device Communicator::device() const { return backend_->device(); }

Communicator Communicator::alone() const {
  auto self = detail::make_serial_backend("self");
  self->set_device(device(), backend_->plugin());
  return Communicator(std::move(self));
}

Communicator Communicator::split(int color, int key, const std::string& axis) const {
  UQA_CHECK(color >= 0, ErrorCode::kInternal, "split color = {} on axis '{}', must be >= 0", color, axis);
  auto part = backend_->split(color, key, axis);
  part->set_device(device(), backend_->plugin());
  if (backend_->plugin()) detail::attach_device(part, backend_->plugin());
  return Communicator(std::move(part));
}

namespace {

using Scope = WatchedGroup::Scope;

/// The transport that reads x where it is; null when there is none.
detail::Backend* transport_of(const Tensor& x, const Communicator& comm) {
  auto& host = comm.backend();
  if (host.serves(x.device())) return &host;
  return host.on_device() != nullptr && host.on_device()->serves(x.device()) ? host.on_device() : nullptr;
}

detail::Backend& transport(const Tensor& x, const Communicator& comm) { return *transport_of(x, comm); }

void check_tensor(const Tensor& x, const char* op, const Communicator& comm) {
  UQA_CHECK(x.defined(), ErrorCode::kInternal, "{} on axis '{}': the tensor must be defined", op, comm.axis());
  UQA_CHECK(comm.size() == 1 || transport_of(x, comm) != nullptr, ErrorCode::kInternal,
            "{} on axis '{}': the tensor is on {}, which no transport of this group can read; move it to the CPU or start with --device=cuda", op, comm.axis(),
            x.device().str());
  const auto type = x.scalar_type();
  UQA_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kLong, ErrorCode::kInternal,
            "{} on axis '{}': dtype = {}, must be float32, bfloat16 or int64; convert it", op, comm.axis(),
            at::toString(type));
}

void check_in_place(const Tensor& x, const char* op, const Communicator& comm) {
  check_tensor(x, op, comm);
  UQA_CHECK(x.is_contiguous(), ErrorCode::kInternal,
            "{} on axis '{}': an in-place collective needs a contiguous tensor; call contiguous()", op, comm.axis());
}

Tensor new_copy(const Tensor& x) { return x.detach().clone(at::MemoryFormat::Contiguous); }

/// float32 or int64 memory of a contiguous tensor.
Elements elements_of(const Tensor& x) {
  return {x.data_ptr(), x.numel(), x.scalar_type() == at::kLong ? ElementType::kInt64 : ElementType::kFloat32};
}

std::int64_t bytes_of(const Elements& x) { return x.count * element_bytes(x.type); }

void count_all_reduce(const Elements& x, const Communicator& comm) {
  // Ring: reduce-scatter and all-gather, (n - 1) / n of the bytes each.
  comm.backend().count_sent(2 * (comm.size() - 1) * bytes_of(x) / comm.size());
}

/// Gives back the bfloat16 result of a float32 reduction.
class RoundingPending : public detail::Pending {
 public:
  RoundingPending(std::unique_ptr<detail::Pending> pending, Tensor wide, Tensor target)
      : pending_(std::move(pending)), wide_(std::move(wide)), target_(std::move(target)) {}
  void wait() override {
    pending_->wait();
    target_.copy_(wide_);
  }
  bool test() override {
    if (!pending_->test()) return false;
    target_.copy_(wide_);
    return true;
  }

 private:
  std::unique_ptr<detail::Pending> pending_;
  Tensor wide_, target_;
};

/// Notes the wait for a started collective with the watchdog.
class WatchedPending : public detail::Pending {
 public:
  WatchedPending(std::unique_ptr<detail::Pending> pending, std::shared_ptr<detail::Backend> backend, const char* op,
                 std::uint64_t sequence)
      : pending_(std::move(pending)), backend_(std::move(backend)), op_(op), sequence_(sequence) {}
  void wait() override {
    const Scope scope(backend_->watched(), op_, sequence_);
    pending_->wait();
  }
  bool test() override { return pending_->test(); }

 private:
  std::unique_ptr<detail::Pending> pending_;
  std::shared_ptr<detail::Backend> backend_;
  const char* op_;
  std::uint64_t sequence_;
};

/// What must agree before rows travel: dtype and the shape behind dim 0, as two numbers.
struct RowForm {
  std::int64_t rows = 0;
  std::int64_t form = 0;
};

std::int64_t row_elements(const Tensor& x) {
  std::int64_t elements = 1;
  for (std::int64_t dim = 1; dim < x.dim(); ++dim) elements *= x.size(dim);
  return elements;
}

RowForm row_form(const Tensor& x, std::int64_t rows) {
  // FNV-1a over dtype and trailing sizes.
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  const auto mix = [&hash](std::int64_t value) {
    for (int byte = 0; byte < 8; ++byte)
      hash = (hash ^ ((static_cast<std::uint64_t>(value) >> (8 * byte)) & 0xff)) * 0x100000001b3ULL;
  };
  mix(static_cast<std::int64_t>(x.scalar_type()));
  for (std::int64_t dim = 1; dim < x.dim(); ++dim) mix(x.size(dim));
  return {rows, static_cast<std::int64_t>(hash)};
}

void check_forms(const std::vector<RowForm>& forms, const char* op, const Tensor& x, const Communicator& comm) {
  for (std::size_t rank = 1; rank < forms.size(); ++rank) {
    // Every rank compares the same numbers, so every rank throws.
    if (forms[rank].form == forms[0].form) continue;
    throw AgreedError(
        ErrorCode::kInternal,
        fmt::format("{} on axis '{}': dtype or trailing shape of rank {} differs from rank 0's; this rank {} has {} "
                    "with shape [{}]",
                    op, comm.axis(), rank, comm.rank(), at::toString(x.scalar_type()), fmt::join(x.sizes(), ", ")),
        comm.size());
  }
}

/// Of an op whose tensor holds this rank's rows only.
void check_own_rows(const Tensor& x, const std::vector<std::int64_t>& rows, const char* op, const Communicator& comm) {
  const bool valid = rows.size() == static_cast<std::size_t>(comm.size()) && std::ranges::all_of(rows, [](std::int64_t n) { return n >= 0; });
  UQA_CHECK(valid && x.dim() >= 1 && x.size(0) == rows[static_cast<std::size_t>(comm.rank())], ErrorCode::kInternal,
            "{} on axis '{}': row counts = [{}], must be {} numbers >= 0, and that of rank {} the tensor's rows; its shape is [{}]", op, comm.axis(),
            fmt::join(rows, ", "), comm.size(), comm.rank(), fmt::join(x.sizes(), ", "));
}

void check_rows(const Tensor& x, const std::vector<std::int64_t>& rows, const char* op, const Communicator& comm) {
  std::int64_t sum = 0;
  bool valid = rows.size() == static_cast<std::size_t>(comm.size());
  for (const auto n : rows) {
    valid = valid && n >= 0;
    sum += n;
  }
  UQA_CHECK(
      valid && x.dim() >= 1 && sum == x.size(0), ErrorCode::kInternal,
      "{} on axis '{}': row counts = [{}], must be {} numbers >= 0 that add up to the tensor's rows; its shape is [{}]",
      op, comm.axis(), fmt::join(rows, ", "), comm.size(), fmt::join(x.sizes(), ", "));
}

std::vector<std::int64_t> scaled(const std::vector<std::int64_t>& rows, std::int64_t factor) {
  std::vector<std::int64_t> result(rows);
  for (auto& n : result) n *= factor;
  return result;
}

Tensor empty_rows(const Tensor& x, std::int64_t rows) {
  auto sizes = x.sizes().vec();
  sizes.at(0) = rows;
  return at::empty(sizes, x.options().requires_grad(false));
}

}  // namespace

void all_reduce_(Tensor& x, ReduceOp op, const Communicator& comm) {
  check_in_place(x, "all_reduce_", comm);
  if (comm.size() == 1 || x.numel() == 0) return;
  const Scope scope(comm.backend().watched(), "all_reduce");
  const auto reduce = [&](const Tensor& whole) {
    const Elements elements = elements_of(whole);
    transport(x, comm).all_reduce(elements, op);
    count_all_reduce(elements, comm);
  };
  if (x.scalar_type() != at::kBFloat16) return reduce(x);
  // In pieces, so that the float32 copy of a large tensor stays small.
  constexpr std::int64_t kPiece = std::int64_t{1} << 24;
  Tensor flat = x.detach().view({-1});
  for (std::int64_t begin = 0; begin < flat.numel(); begin += kPiece) {
    Tensor piece = flat.narrow(0, begin, std::min(kPiece, flat.numel() - begin));
    const Tensor wide = piece.to(at::kFloat);
    reduce(wide);
    piece.copy_(wide);
  }
}

Tensor all_reduce(const Tensor& x, ReduceOp op, const Communicator& comm) {
  check_tensor(x, "all_reduce", comm);
  Tensor result = new_copy(x);
  all_reduce_(result, op, comm);
  return result;
}

Work all_reduce_async_(Tensor& x, ReduceOp op, const Communicator& comm) {
  check_in_place(x, "all_reduce_async_", comm);
  if (comm.size() == 1 || x.numel() == 0) return {};
  const std::uint64_t sequence = comm.backend().watched().issue("all_reduce_async");
  const Tensor target = x.detach();
  const bool rounds = x.scalar_type() == at::kBFloat16;
  const Tensor wide = rounds ? target.to(at::kFloat) : target;
  const Elements elements = elements_of(wide);
  count_all_reduce(elements, comm);
  std::unique_ptr<detail::Pending> pending = std::make_unique<WatchedPending>(
      transport(x, comm).all_reduce_async(elements, op, wide), comm.backend_ptr(), "all_reduce_async", sequence);
  if (rounds) pending = std::make_unique<RoundingPending>(std::move(pending), wide, target);
  return Work(std::move(pending));
}

Tensor all_gather(const Tensor& x, const Communicator& comm) {
  check_tensor(x, "all_gather", comm);
  UQA_CHECK(x.dim() >= 1, ErrorCode::kInternal, "all_gather on axis '{}': the tensor has no dimension 0; unsqueeze it",
            comm.axis());
  if (comm.size() == 1) return new_copy(x);
  const Scope scope(comm.backend().watched(), "all_gather");
  const auto ranks = static_cast<std::size_t>(comm.size());
  const RowForm mine = row_form(x, x.size(0));
  std::vector<RowForm> forms(ranks);
  comm.backend().all_gather(&mine, forms.data(), std::vector<std::int64_t>(ranks, sizeof(RowForm)));
  check_forms(forms, "all_gather", x, comm);

  std::int64_t total_rows = 0;
  std::vector<std::int64_t> bytes(ranks);
  const std::int64_t row_bytes = row_elements(x) * x.element_size();
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    total_rows += forms[rank].rows;
    bytes[rank] = forms[rank].rows * row_bytes;
  }
  Tensor result = empty_rows(x, total_rows);
  if (result.numel() == 0) return result;
  const Tensor in = x.detach().contiguous();
  transport(in, comm).all_gather(in.data_ptr(), result.data_ptr(), bytes);
  comm.backend().count_sent((comm.size() - 1) * mine.rows * row_bytes);
  return result;
}

std::pair<Tensor, Work> all_gather_async(const Tensor& x, const std::vector<std::int64_t>& rows, const Communicator& comm) {
  check_tensor(x, "all_gather_async", comm);
  check_own_rows(x, rows, "all_gather_async", comm);
  if (comm.size() == 1) return {new_copy(x), Work()};
  Tensor result = empty_rows(x, std::accumulate(rows.begin(), rows.end(), std::int64_t{0}));
  if (result.numel() == 0) return {result, Work()};
  const std::uint64_t sequence = comm.backend().watched().issue("all_gather_async");
  const Tensor in = x.detach().contiguous();
  const auto bytes = scaled(rows, row_elements(x) * x.element_size());
  comm.backend().count_sent((comm.size() - 1) * bytes[static_cast<std::size_t>(comm.rank())]);
  auto pending = transport(in, comm).all_gather_async(in.data_ptr(), result.data_ptr(), bytes, {in, result});
  return {result, Work(std::make_unique<WatchedPending>(std::move(pending), comm.backend_ptr(), "all_gather_async", sequence))};
}

Tensor reduce_scatter(const Tensor& x, const std::vector<std::int64_t>& rows, const Communicator& comm) {
  check_tensor(x, "reduce_scatter", comm);
  check_rows(x, rows, "reduce_scatter", comm);
  if (comm.size() == 1) return new_copy(x);
  const std::int64_t my_rows = rows[static_cast<std::size_t>(comm.rank())];
  if (x.numel() == 0) return empty_rows(x, my_rows);
  const Scope scope(comm.backend().watched(), "reduce_scatter");
  const Tensor in = x.detach().to(x.scalar_type() == at::kLong ? at::kLong : at::kFloat).contiguous();
  Tensor result = empty_rows(in, my_rows);
  transport(in, comm).reduce_scatter(elements_of(in), result.data_ptr(), scaled(rows, row_elements(in)));
  comm.backend().count_sent((in.numel() - result.numel()) * in.element_size());
  return result.to(x.scalar_type());
}

void broadcast_(Tensor& x, int root, const Communicator& comm) {
  check_in_place(x, "broadcast_", comm);
  UQA_CHECK(root >= 0 && root < comm.size(), ErrorCode::kInternal,
            "broadcast on axis '{}': root = {}, must be in [0, {})", comm.axis(), root, comm.size());
  if (comm.size() == 1 || x.numel() == 0) return;
  const Scope scope(comm.backend().watched(), "broadcast");
  const std::int64_t bytes = x.numel() * x.element_size();
  transport(x, comm).broadcast(x.data_ptr(), bytes, root);
  if (comm.rank() == root) comm.backend().count_sent((comm.size() - 1) * bytes);
}

std::pair<Tensor, std::vector<std::int64_t>> all_to_all(const Tensor& x, const std::vector<std::int64_t>& send_rows,
                                                        const Communicator& comm) {
  check_tensor(x, "all_to_all", comm);
  check_rows(x, send_rows, "all_to_all", comm);
  if (comm.size() == 1) return {new_copy(x), send_rows};
  const Scope scope(comm.backend().watched(), "all_to_all");
  const auto ranks = static_cast<std::size_t>(comm.size());
  std::vector<RowForm> mine, theirs(ranks);
  for (const auto rows : send_rows) mine.push_back(row_form(x, rows));
  const std::vector<std::int64_t> form_bytes(ranks, sizeof(RowForm));
  comm.backend().all_to_all(mine.data(), form_bytes, theirs.data(), form_bytes);
  check_forms(theirs, "all_to_all", x, comm);

  std::vector<std::int64_t> received(ranks);
  std::int64_t total_rows = 0;
  for (std::size_t rank = 0; rank < ranks; ++rank) total_rows += received[rank] = theirs[rank].rows;
  const std::int64_t row_bytes = row_elements(x) * x.element_size();
  const Tensor in = x.detach().contiguous();
  Tensor result = empty_rows(x, total_rows);
  transport(in, comm).all_to_all(in.data_ptr(), scaled(send_rows, row_bytes), result.data_ptr(),
                            scaled(received, row_bytes));
  comm.backend().count_sent((in.size(0) - send_rows[static_cast<std::size_t>(comm.rank())]) * row_bytes);
  return {result, received};
}

void barrier(const Communicator& comm) {
  if (comm.size() == 1) return;
  const Scope scope(comm.backend().watched(), "barrier");
  comm.backend().barrier();
}

}  // namespace uqa::comm
