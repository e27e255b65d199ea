// Numbers, texts and errors that ranks have in common, made of the collectives on tensors.
#include <algorithm>
#include <bit>

#include "comm/communicator.h"

namespace uqa::comm {

std::int64_t all_reduce(std::int64_t value, ReduceOp op, const Communicator& comm) {
  Tensor one = at::full({1}, value, at::kLong);
  all_reduce_(one, op, comm);
  return one.item<std::int64_t>();
}

double sum_in_order(double value, const Communicator& comm) {
  if (comm.size() == 1) return value;
  const Tensor all = all_gather(at::full({1}, std::bit_cast<std::int64_t>(value), at::kLong), comm).contiguous();
  const auto* const bits = all.const_data_ptr<std::int64_t>();
  double sum = 0;
  for (std::int64_t r = 0; r < all.numel(); ++r) sum += std::bit_cast<double>(bits[r]);
  return sum;
}

std::string broadcast_text(const std::string& text, int root, const Communicator& comm) {
  if (comm.size() == 1) return text;
  Tensor size = at::full({1}, static_cast<std::int64_t>(text.size()), at::kLong);
  broadcast_(size, root, comm);
  // Characters travel as they are in whole int64 words.
  const std::int64_t bytes = size.item<std::int64_t>();
  Tensor words = at::zeros({(bytes + 7) / 8}, at::kLong);
  if (comm.rank() == root) std::copy(text.begin(), text.end(), static_cast<char*>(words.data_ptr()));
  broadcast_(words, root, comm);
  return {static_cast<const char*>(words.const_data_ptr()), static_cast<std::size_t>(bytes)};
}

void agree_or_throw(const Communicator& comm, bool ok, ErrorCode code, const std::string& text) {
  if (comm.size() == 1) {
    if (!ok) throw AgreedError(code, text, 1);
    return;
  }
  // Smallest of: this rank's number if it fails; 0 if it is fine, so that 1 means nobody is.
  Tensor verdict = at::tensor(std::vector<std::int64_t>{ok ? comm.size() : comm.rank(), ok ? 0 : 1}, at::kLong);
  all_reduce_(verdict, ReduceOp::kMin, comm);
  const int failing = static_cast<int>(verdict[0].item<std::int64_t>());
  if (failing == comm.size()) return;
  const bool all_fail = verdict[1].item<std::int64_t>() == 1;
  Tensor their_code = at::full({1}, static_cast<std::int64_t>(code), at::kLong);
  broadcast_(their_code, failing, comm);
  const std::string their_text = broadcast_text(text, failing, comm);
  throw AgreedError(static_cast<ErrorCode>(their_code.item<std::int64_t>()),
                    all_fail ? their_text : fmt::format("rank {}: {}", failing, their_text), comm.size());
}

void run_agreed(const Communicator& comm, const std::function<void()>& body) {
  bool ok = false;
  ErrorCode code = ErrorCode::kInternal;
  std::string text;
  try {
    body();
    ok = true;
  } catch (const Error& error) {
    const auto* const agreed = dynamic_cast<const AgreedError*>(&error);
    if (agreed != nullptr && agreed->num_ranks() >= comm.size()) throw;  // every rank has it already
    code = error.code();
    text = error.what();
  } catch (const std::exception& error) {
    text = first_line(error.what());
  }
  agree_or_throw(comm, ok, code, text);
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace uqa::comm
