// trainer/autocast.h - bf16 GEMMs in a scope: linear layers and matmuls take bfloat16 copies of float32 weights (LibTorch's autocast).
#pragma once

#include "models/torch_pch.h"

#include <ATen/autocast_mode.h>

namespace uqa::trainer {

/// While alive and `on`, this thread's CPU matmuls run in bfloat16; gradients of the float32 masters stay float32. Backward runs outside.
class AutocastBf16 {
 public:
  explicit AutocastBf16(bool on)
      : on_(on), enabled_before_(at::autocast::is_autocast_enabled(at::kCPU)), dtype_before_(at::autocast::get_autocast_dtype(at::kCPU)) {
    if (!on_) return;
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    at::autocast::increment_nesting();
  }
  ~AutocastBf16() {
    if (!on_) return;
    // The cache holds bfloat16 copies of the weights: they are stale after the next update.
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_dtype(at::kCPU, dtype_before_);
    at::autocast::set_autocast_enabled(at::kCPU, enabled_before_);
  }
  AutocastBf16(const AutocastBf16&) = delete;
  AutocastBf16& operator=(const AutocastBf16&) = delete;

 private:
  bool on_, enabled_before_;
  at::ScalarType dtype_before_;
};

}  // namespace uqa::trainer
