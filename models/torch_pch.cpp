#include "models/torch_pch.h"  // the translation unit that owns the precompiled header
