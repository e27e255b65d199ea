// data/import/pass1.h - the first pass of an import: ids by first appearance, interactions spilled by user.
#pragma once

#include <vector>

#include "data/import/handover.h"
#include "data/import/import.h"

namespace uqa::data::import {

struct Pass1 {
  Handover handover;
  ItemCatalog catalog;
  ImportReport report;  ///< all but the digest
};

/// Reads all input once and leaves the spill files in `spill`.
[[nodiscard]] Pass1 run_pass1(const SourceSchema& schema, const ImportOptions& options, std::int64_t num_shards, const fs::path& spill);

}  // namespace uqa::data::import
