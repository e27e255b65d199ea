// tests/support/counting_allocator.h - how many bytes tensors hold, of all threads.
#pragma once

#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace uqa::tests {

/// Counts the bytes that tensors hold while it lives.
class CountingAllocator final : public c10::Allocator {
 public:
  CountingAllocator() : base_(c10::GetAllocator(c10::kCPU)) { c10::SetAllocator(c10::kCPU, this, /*priority=*/255); }
  ~CountingAllocator() override { c10::SetAllocator(c10::kCPU, base_, 255); }
  c10::DataPtr allocate(size_t bytes) override {
    auto* const block = static_cast<char*>(std::aligned_alloc(kHeader, kHeader + (bytes + kHeader - 1) / kHeader * kHeader));
    if (block == nullptr) throw std::bad_alloc();
    *reinterpret_cast<std::int64_t*>(block) = static_cast<std::int64_t>(bytes);
    const std::int64_t now = held += static_cast<std::int64_t>(bytes);
    for (auto seen = peak.load(); seen < now && !peak.compare_exchange_weak(seen, now);) {
    }
    auto* const data = block + kHeader;
    return {data, data, &release, c10::Device(c10::kCPU)};  // LibTorch wants data and context to be one pointer where it takes raw memory
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
  inline static std::atomic<std::int64_t> held{0};
  inline static std::atomic<std::int64_t> peak{0};  ///< of `held`; set it to `held` to begin anew

 private:
  static constexpr std::size_t kHeader = 64;  ///< before the data: their size; keeps LibTorch's alignment
  static void release(void* data) {
    if (data == nullptr) return;
    auto* const block = static_cast<char*>(data) - kHeader;
    held -= *reinterpret_cast<const std::int64_t*>(block);
    std::free(block);
  }
  c10::Allocator* base_;
};

}  // namespace uqa::tests
