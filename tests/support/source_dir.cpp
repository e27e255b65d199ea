#include "tests/support/source_dir.h"

namespace uqa::tests {

std::filesystem::path source_dir() { return UQA_SOURCE_DIR; }

}  // namespace uqa::tests
