// data/inspect.h - what a path holds, as text for people: `uqa inspect`.
#pragma once

#include <string>

#include "core/file.h"

namespace uqa::data {

/// Recognises a data directory, one of its .h5 files, a question set, a run directory, a checkpoint, and an evaluation directory by
/// what is in them; prints counts, schema, length quantiles and sizes. Checksums of a data directory are verified. Lines end in '\n'.
/// Throws Error(kData) when the path does not exist, is none of these (naming what is recognised), or is damaged.
[[nodiscard]] std::string inspect(const fs::path& path);

}  // namespace uqa::data
