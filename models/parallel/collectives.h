// models/parallel/collectives.h - collectives inside autograd, as conjugate pairs: what one does forward its partner does backward.
//
//   auto y_TH = reduce_from(row(relu(column(copy_to(x_TH, tp)))), tp);   // x and y equal on all ranks, the middle split over them
//
// Every rank of `comm` must call them in the same order, forward and backward; they build the same graph, so the order is the same. On a
// group of one each returns its argument. float32 and bfloat16 (sums accumulate in float32). The group is kept alive by the graph.
#pragma once

#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "models/packed.h"

namespace uqa::models {

/// Keeps a group alive in a graph: saved as a capsule in the context of an autograd function.
struct CommHolder : torch::CustomClassHolder {
  explicit CommHolder(comm::Communicator group) : comm(std::move(group)) {}
  comm::Communicator comm;
};
using CommPtr = c10::intrusive_ptr<CommHolder>;
[[nodiscard]] inline CommPtr hold(const comm::Communicator& comm) { return c10::make_intrusive<CommHolder>(comm); }
inline void save_comm(torch::autograd::AutogradContext* ctx, const CommPtr& comm) { ctx->saved_data["comm"] = c10::IValue::make_capsule(comm); }
[[nodiscard]] inline comm::Communicator saved_comm(torch::autograd::AutogradContext* ctx) {
  return c10::static_intrusive_pointer_cast<CommHolder>(ctx->saved_data["comm"].toCapsule())->comm;
}

/// Identity forward, sum over ranks backward: enters a region where each rank computes a part. Equal x on all ranks -> x.
[[nodiscard]] Tensor copy_to(const Tensor& x, const comm::Communicator& comm);
/// copy_to() of several float32 tensors with one collective backward: parameters that several ranks hold and each uses in part.
[[nodiscard]] std::vector<Tensor> copy_all_to(const std::vector<Tensor>& tensors, const comm::Communicator& comm);
/// Sum over ranks forward, identity backward: leaves such a region. Partial x -> the sum, equal on all ranks.
[[nodiscard]] Tensor reduce_from(const Tensor& x, const comm::Communicator& comm);
/// This rank's stretch of the last dimension forward, concatenation over ranks backward. [*, F] -> [*, F_r]; F need not be divisible:
/// even_range() says who has what.
[[nodiscard]] Tensor scatter_to(const Tensor& x, const comm::Communicator& comm);
/// Concatenation along the last dimension forward, this rank's stretch of the gradient backward: what follows is computed by every rank
/// alike. [*, F_r] -> [*, F].
[[nodiscard]] Tensor gather_from(const Tensor& x, const comm::Communicator& comm);

}  // namespace uqa::models
