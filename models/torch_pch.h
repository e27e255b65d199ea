// models/torch_pch.h - the precompiled header of every target that includes LibTorch. Include torch through it only.
#pragma once

#include <torch/nn.h>
#include <torch/torch.h>

#include <fmt/format.h>
#include <fmt/ranges.h>
