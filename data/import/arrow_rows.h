// data/import/arrow_rows.h - one text column of an Arrow IPC file, for what is not an interaction (the `text` of the align files).
#pragma once

#include <string>
#include <vector>

#include "core/file.h"

namespace uqa::data::import {

/// The texts of `column`, a row each, in file order; a null is an empty text. Throws Error(kData): absent column (naming those there
/// are), not a text column, empty, truncated or corrupt file.
[[nodiscard]] std::vector<std::string> read_text_column(const fs::path& path, const std::string& column = "text");

}  // namespace uqa::data::import
