#include "core/json.h"

namespace uqa {
namespace {

constexpr std::size_t kShownBytes = 160;  // a damaged file can put megabytes between two quotes

std::string cut(std::string text) {
  if (text.size() > kShownBytes) text.replace(kShownBytes, std::string::npos, "...");
  return text;
}

}  // namespace

std::string describe(const Json& value) {
  if (value.is_array()) return fmt::format("a list of {}", value.size());
  if (value.is_object()) return fmt::format("an object of {} keys", value.size());
  return cut(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

Json parse_json(std::string_view text, const std::string& what) {
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& e) {
    UQA_FAIL(ErrorCode::kData, "{} is not valid JSON at byte {}: {}", what, e.byte, cut(e.what()));
  } catch (const Json::exception& e) {  // a number that does not fit a double
    UQA_FAIL(ErrorCode::kData, "{} is not valid JSON: {}", what, cut(e.what()));
  }
}

Json read_json(const fs::path& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  return parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.string());
}

}  // namespace uqa
