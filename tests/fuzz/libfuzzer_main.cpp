// Entry point of the libFuzzer programs; UQA_FUZZ_TARGET is the function of targets.h that one program feeds.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/error.h"
#include "tests/fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    uqa::fuzz::UQA_FUZZ_TARGET(std::string_view(reinterpret_cast<const char*>(data), size));
  } catch (const uqa::Error& e) {
    if (e.code() == uqa::ErrorCode::kInternal) throw;  // a broken promise of the parser, not a refusal
  }
  return 0;
}
