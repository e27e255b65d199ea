// tests/unit/comm/nccl/fake.h - what the recording stand-in for NCCL and the CUDA runtime has seen, and what it is told to answer.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace uqa::testing {

/// Handles are small numbers: streams s1, s2, ..., events e1, ..., communicators c1, ...; the current stream is s99. Guarded by `mutex`.
struct NcclFake {
  std::mutex mutex;
  std::vector<std::string> calls;         ///< "ncclAllReduce 0x10 0x10 5 f32 sum c1 s1"
  std::map<std::string, int> failures;    ///< by function: what it returns from now on
  int async_error = 0;                    ///< of every communicator
  std::string last_error;                 ///< ncclGetLastError
  bool events_reached = true;             ///< what cudaEventQuery answers
  std::vector<int> device_uuids{7, 8};    ///< one visible device each
  int handles = 0;
  int live_events = 0, live_streams = 0, live_communicators = 0, live_allocations = 0;
  int group_depth = 0;
};

/// Exported by the library of the fake.
using GetNcclFake = NcclFake* (*)();
inline constexpr const char* kGetNcclFakeName = "uqa_nccl_fake";

}  // namespace uqa::testing
