// The nccl* and cuda* entry points that the plug-in uses, as a recorder: linked with the plug-in's objects into one library, so that it gets
// these and the rest of the process keeps the real ones.
#include "tests/unit/comm/nccl/fake.h"

#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstdio>
#include <cstring>

#include <fmt/format.h>

namespace {

using uqa::testing::NcclFake;

NcclFake& fake() {
  static NcclFake state;
  return state;
}

int number(const void* handle) { return static_cast<int>(reinterpret_cast<std::intptr_t>(handle)); }
template <typename Handle>
Handle new_handle() {
  return reinterpret_cast<Handle>(static_cast<std::intptr_t>(++fake().handles));
}

/// Notes a call; what it must return.
template <typename... Args>
int call(const char* name, fmt::format_string<Args...> format, Args&&... args) {
  const std::string text = fmt::format(format, std::forward<Args>(args)...);
  fake().calls.push_back(text.empty() ? name : fmt::format("{} {}", name, text));
  const auto failure = fake().failures.find(name);
  return failure == fake().failures.end() ? 0 : failure->second;
}

const char* name_of(ncclDataType_t type) { return type == ncclFloat32 ? "f32" : type == ncclInt64 ? "i64" : type == ncclUint8 ? "u8" : "?"; }
const char* name_of(ncclRedOp_t op) { return op == ncclSum ? "sum" : op == ncclMax ? "max" : op == ncclMin ? "min" : "?"; }

}  // namespace

#define LOCKED const std::lock_guard lock(fake().mutex)
#define NCCL_CALL(...) static_cast<ncclResult_t>(call(__func__, __VA_ARGS__))
#define CUDA_CALL(...) static_cast<cudaError_t>(call(__func__, __VA_ARGS__))

extern "C" {

__attribute__((visibility("default"))) NcclFake* uqa_nccl_fake() { return &fake(); }

ncclResult_t ncclGetVersion(int* version) {
  *version = 23007;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  LOCKED;
  std::memset(id->internal, 'u', sizeof(id->internal));
  return NCCL_CALL("");
}
ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
  LOCKED;
  const auto result = NCCL_CALL("n{} {} r{}", ranks, std::string(id.internal, 3), rank);
  if (result != ncclSuccess) return result;
  *comm = new_handle<ncclComm_t>();
  ++fake().live_communicators;
  return result;
}
ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  LOCKED;
  return NCCL_CALL("c{}", number(comm));
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  LOCKED;
  --fake().live_communicators;
  return NCCL_CALL("c{}", number(comm));
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  LOCKED;
  --fake().live_communicators;
  return NCCL_CALL("c{}", number(comm));
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) {
  LOCKED;
  *error = static_cast<ncclResult_t>(fake().async_error);
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t result) { return result == ncclRemoteError ? "remote process exited" : "unhandled system error"; }
const char* ncclGetLastError(ncclComm_t) { return fake().last_error.c_str(); }
ncclResult_t ncclGroupStart() {
  LOCKED;
  ++fake().group_depth;
  return NCCL_CALL("");
}
ncclResult_t ncclGroupEnd() {
  LOCKED;
  --fake().group_depth;
  return NCCL_CALL("");
}
ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  LOCKED;
  return NCCL_CALL("{} {} {} {} {} c{} s{}", in, static_cast<const void*>(out), count, name_of(type), name_of(op), number(comm), number(stream));
}
ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type, ncclComm_t comm, cudaStream_t stream) {
  LOCKED;
  return NCCL_CALL("{} {} {} {} c{} s{}", in, static_cast<const void*>(out), count, name_of(type), number(comm), number(stream));
}
ncclResult_t ncclReduceScatter(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  LOCKED;
  return NCCL_CALL("{} {} {} {} {} c{} s{}", in, static_cast<const void*>(out), count, name_of(type), name_of(op), number(comm), number(stream));
}
ncclResult_t ncclReduce(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
  LOCKED;
  return NCCL_CALL("{} {} {} {} {} root{} c{} s{}", in, static_cast<const void*>(out), count, name_of(type), name_of(op), root, number(comm), number(stream));
}
ncclResult_t ncclBroadcast(const void* in, void* out, size_t count, ncclDataType_t type, int root, ncclComm_t comm, cudaStream_t stream) {
  LOCKED;
  return NCCL_CALL("{} {} {} {} root{} c{} s{}", in, static_cast<const void*>(out), count, name_of(type), root, number(comm), number(stream));
}
ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
  LOCKED;
  return NCCL_CALL("{} {} {} to{} c{} s{}", data, count, name_of(type), peer, number(comm), number(stream));
}
ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
  LOCKED;
  return NCCL_CALL("{} {} {} from{} c{} s{}", static_cast<const void*>(data), count, name_of(type), peer, number(comm), number(stream));
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13020;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) { return error == cudaErrorInsufficientDriver ? "driver is missing" : "launch failed"; }
cudaError_t cudaGetDeviceCount(int* count) {
  LOCKED;
  const auto failure = fake().failures.find("cudaGetDeviceCount");
  if (failure != fake().failures.end()) return static_cast<cudaError_t>(failure->second);  // leaves the count as it is, as the real one does
  *count = static_cast<int>(fake().device_uuids.size());
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  LOCKED;
  std::snprintf(properties->name, sizeof(properties->name), "Fake %d", device);
  properties->uuid.bytes[0] = static_cast<char>(fake().device_uuids.at(static_cast<std::size_t>(device)));
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  LOCKED;
  return CUDA_CALL("d{}", device);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned int flags, int priority) {
  LOCKED;
  *stream = new_handle<cudaStream_t>();
  ++fake().live_streams;
  return CUDA_CALL("{} {}", flags == cudaStreamNonBlocking ? "non-blocking" : "blocking", priority);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  LOCKED;
  --fake().live_streams;
  return CUDA_CALL("s{}", number(stream));
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  LOCKED;
  return CUDA_CALL("s{}", number(stream));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int) {
  LOCKED;
  return CUDA_CALL("s{} e{}", number(stream), number(event));
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  LOCKED;
  if (const auto failure = fake().failures.find("cudaEventCreateWithFlags"); failure != fake().failures.end()) return static_cast<cudaError_t>(failure->second);
  if (flags != cudaEventDisableTiming) return cudaErrorInvalidValue;
  *event = new_handle<cudaEvent_t>();
  ++fake().live_events;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) {
  LOCKED;
  --fake().live_events;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  LOCKED;
  return CUDA_CALL("e{} s{}", number(event), number(stream));
}
cudaError_t cudaEventQuery(cudaEvent_t) {
  LOCKED;
  if (const auto failure = fake().failures.find("cudaEventQuery"); failure != fake().failures.end()) return static_cast<cudaError_t>(failure->second);
  return fake().events_reached ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  LOCKED;
  return CUDA_CALL("e{}", number(event));
}
cudaError_t cudaMalloc(void** data, size_t bytes) {
  LOCKED;
  *data = new_handle<void*>();
  ++fake().live_allocations;
  return CUDA_CALL("{}", bytes);
}
cudaError_t cudaFree(void*) {
  LOCKED;
  --fake().live_allocations;
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void*, int value, size_t bytes, cudaStream_t stream) {
  LOCKED;
  return CUDA_CALL("{} {} s{}", value, bytes, number(stream));
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
  LOCKED;
  return CUDA_CALL("{} {} {} {} s{}", static_cast<const void*>(to), from, bytes, kind == cudaMemcpyDeviceToDevice ? "d2d" : "?", number(stream));
}

}  // extern "C"

namespace c10::cuda {

CUDAStream getCurrentCUDAStream(DeviceIndex device) {
  return CUDAStream(CUDAStream::UNCHECKED, c10::Stream(c10::Stream::DEFAULT, c10::Device(c10::DeviceType::CUDA, device)));
}
cudaStream_t CUDAStream::stream() const { return reinterpret_cast<cudaStream_t>(std::intptr_t{99}); }

}  // namespace c10::cuda
