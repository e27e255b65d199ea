#include "models/format/safetensors.h"
