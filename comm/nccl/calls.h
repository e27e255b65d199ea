// comm/nccl/calls.h - checked NCCL and CUDA runtime calls, and the handles that the plug-in owns.
//
//   UQA_NCCL(ncclAllReduce(...), comm, "axis 'dp'");      // Error(kComm): ncclAllReduce on axis 'dp': unhandled system error (...)
//   UQA_CUDA(cudaStreamWaitEvent(stream, event.get(), 0));
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <memory>
#include <string>

#include "core/error.h"

namespace uqa::comm::nccl {

/// "ncclAllReduce" of "ncclAllReduce(a, b)".
[[nodiscard]] inline std::string name_of(const char* expression) {
  const std::string text(expression);
  return text.substr(0, text.find('('));
}

/// NCCL's words about a result, with its own last message when it has one.
[[nodiscard]] inline std::string explain(ncclResult_t result, ncclComm_t comm) {
  const char* const last = comm == nullptr ? nullptr : ncclGetLastError(comm);
  const std::string detail = last == nullptr ? "" : last;
  return fmt::format("{}{}", ncclGetErrorString(result), detail.empty() ? "" : fmt::format(" ({})", detail.substr(0, detail.find('\n'))));
}

inline void check(ncclResult_t result, const char* expression, ncclComm_t comm, const std::string& axis) {
  if (result == ncclSuccess) return;
  UQA_FAIL(ErrorCode::kComm, "{} on axis '{}': {}; see the other ranks' output, or NCCL_DEBUG=WARN", name_of(expression), axis, explain(result, comm));
}

inline void check(cudaError_t result, const char* expression) {
  if (result == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // a later call must not report this one again
  UQA_FAIL(ErrorCode::kComm, "{}: {}; see the other ranks' output", name_of(expression), cudaGetErrorString(result));
}

#define UQA_NCCL(expression, handle, where) ::uqa::comm::nccl::check((expression), #expression, (handle), (where))
#define UQA_CUDA(expression) ::uqa::comm::nccl::check((expression), #expression)

/// A CUDA event without timing. Destroying one that has not been reached is allowed.
class Event {
 public:
  Event() { UQA_CUDA(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  ~Event() { static_cast<void>(cudaEventDestroy(event_)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  [[nodiscard]] cudaEvent_t get() const noexcept { return event_; }
  /// True once all work before it on its stream has ended. Throws Error(kComm) for a failure of that work.
  [[nodiscard]] bool reached() const {
    const cudaError_t result = cudaEventQuery(event_);
    if (result == cudaErrorNotReady) {
      static_cast<void>(cudaGetLastError());
      return false;
    }
    check(result, "cudaEventQuery");
    return true;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace uqa::comm::nccl
