// core/json.h - JSON from outside, read with errors that name file, key, value and rule.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"

namespace uqa {

using Json = nlohmann::json;

/// Parses a JSON file. Throws Error(kData) with the file name and the parser's position.
[[nodiscard]] Json read_json(const fs::path& path);
/// Parses JSON text; `what` names it in the error.
[[nodiscard]] Json parse_json(std::string_view text, const std::string& what);

/// What a value is, short enough for an error line: "'abc'", "3", "a list of 5", "an object of 2 keys".
[[nodiscard]] std::string describe(const Json& value);

/// `object[key]` as T. Throws Error(kData) "<what>: key '<key>' is missing / is not a ..., got ...".
template <typename T>
[[nodiscard]] T get(const Json& object, const std::string& key, const std::string& what) {
  UQA_CHECK(object.is_object() && object.contains(key), ErrorCode::kData, "{}: key '{}' is missing", what, key);
  try {
    return object.at(key).get<T>();
  } catch (const Json::exception&) {
    UQA_FAIL(ErrorCode::kData, "{}: key '{}' = {} has the wrong type", what, key, describe(object.at(key)));
  }
}
/// Same, with a default for an absent or null key.
template <typename T>
[[nodiscard]] T get_or(const Json& object, const std::string& key, T fallback, const std::string& what) {
  if (!object.is_object() || !object.contains(key) || object.at(key).is_null()) return fallback;
  return get<T>(object, key, what);
}

}  // namespace uqa
