// trainer/save_whole.h - whole tensors into one safetensors file, whatever the layout: slices travel to rank 0 a piece at a time.
//
//   save_whole_tensors(run / "model.safetensors", parameters, mesh);   // every rank; rank 0 writes
#pragma once

#include <cstdint>
#include <vector>

#include "comm/communicator.h"
#include "core/file.h"
#include "trainer/parameter.h"

namespace uqa::trainer {

/// Writes `tensors` (names, order and layouts equal on all ranks, but for the ranges) atomically. Rank 0 holds at most two pieces of
/// `piece_bytes` (or one row) beyond what it has anyway. Collective over mesh.world(). Errors are agreed: Error(kData) on every rank.
void save_whole_tensors(const fs::path& path, const std::vector<NamedParameter>& tensors, const comm::Mesh& mesh, std::int64_t piece_bytes = std::int64_t{32} << 20);

}  // namespace uqa::trainer
