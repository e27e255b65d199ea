// tests/support/counting_allocator.h - how many bytes tensors hold, of all threads.
#pragma once

#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <cstdint>

namespace uqa::tests {

/// Counts the bytes that tensors hold while it lives.
class CountingAllocator final : public c10::Allocator {
 public:
  CountingAllocator() : base_(c10::GetAllocator(c10::kCPU)) { c10::SetAllocator(c10::kCPU, this, /*priority=*/255); }
  ~CountingAllocator() override { c10::SetAllocator(c10::kCPU, base_, 255); }
  c10::DataPtr allocate(size_t bytes) override {
    auto* const block = new Block{base_->allocate(bytes), static_cast<std::int64_t>(bytes)};
    const std::int64_t now = held += block->bytes;
    for (auto seen = peak.load(); seen < now && !peak.compare_exchange_weak(seen, now);) {
    }
    return {block->data.get(), block, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
  inline static std::atomic<std::int64_t> held{0};
  inline static std::atomic<std::int64_t> peak{0};  ///< of `held`; set it to `held` to begin anew

 private:
  struct Block {
    c10::DataPtr data;
    std::int64_t bytes;
  };
  static void release(void* context) {
    auto* const block = static_cast<Block*>(context);
    held -= block->bytes;
    delete block;
  }
  c10::Allocator* base_;
};

}  // namespace uqa::tests
