// models/layers/no_autocast.h - hand-written functions choose their own dtypes: a caller's autocast scope ends at their door.
#pragma once

#include "models/torch_pch.h"

namespace uqa::models {

/// While it lives, ATen calls of this thread keep the dtype of their arguments.
class NoAutocast {
 public:
  NoAutocast() = default;

 private:
  c10::impl::ExcludeDispatchKeyGuard guard_{c10::autocast_dispatch_keyset};
};

}  // namespace uqa::models
