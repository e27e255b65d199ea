#include "core/json.h"

namespace uqa {

Json parse_json(std::string_view text, const std::string& what) {
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& e) {
    UQA_FAIL(ErrorCode::kData, "{} is not valid JSON at byte {}: {}", what, e.byte, e.what());
  }
}

Json read_json(const fs::path& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  return parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.string());
}

}  // namespace uqa
