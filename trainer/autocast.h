// trainer/autocast.h - bf16 GEMMs in a scope: linear layers and matmuls take bfloat16 copies of float32 weights (LibTorch's autocast).
#pragma once

#include "models/torch_pch.h"

#include <ATen/autocast_mode.h>

namespace uqa::trainer {

/// While alive and `on`, this thread's matmuls on `device` run in bfloat16; gradients of the float32 masters stay float32. Backward runs outside.
class AutocastBf16 {
 public:
  AutocastBf16(bool on, at::DeviceType device)
      : on_(on), device_(device), enabled_before_(at::autocast::is_autocast_enabled(device)), dtype_before_(at::autocast::get_autocast_dtype(device)) {
    if (!on_) return;
    at::autocast::set_autocast_enabled(device_, true);
    at::autocast::set_autocast_dtype(device_, at::kBFloat16);
    at::autocast::increment_nesting();
  }
  ~AutocastBf16() {
    if (!on_) return;
    // The cache holds bfloat16 copies of the weights: they are stale after the next update.
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_dtype(device_, dtype_before_);
    at::autocast::set_autocast_enabled(device_, enabled_before_);
  }
  AutocastBf16(const AutocastBf16&) = delete;
  AutocastBf16& operator=(const AutocastBf16&) = delete;

 private:
  bool on_;
  at::DeviceType device_;
  bool enabled_before_;
  at::ScalarType dtype_before_;
};

}  // namespace uqa::trainer
