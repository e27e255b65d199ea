#include "core/json.h"

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace uqa {
namespace {

TEST(Json, ErrorsNameSourceKeyAndValue) {
  const Json object = parse_json(R"({"a": 1, "b": "x", "c": [1, 2], "d": null})", "test.json");
  EXPECT_EQ(get<int>(object, "a", "test.json"), 1);
  EXPECT_EQ(get_or<int>(object, "d", 7, "test.json"), 7);
  EXPECT_EQ(get_or<int>(object, "absent", 7, "test.json"), 7);
  EXPECT_UQA_ERROR(get<int>(object, "absent", "test.json"), ErrorCode::kData, "test.json: key 'absent' is missing");
  EXPECT_UQA_ERROR(get<int>(object, "b", "test.json"), ErrorCode::kData, "key 'b' = \"x\" has the wrong type");
  EXPECT_UQA_ERROR(get<int>(object, "c", "test.json"), ErrorCode::kData, "key 'c' = a list of 2 has the wrong type");
  EXPECT_UQA_ERROR(get<int>(Json::array(), "a", "test.json"), ErrorCode::kData, "key 'a' is missing");
}

TEST(Json, ErrorsStayShortForHugeOrDeepValues) {
  const Json object{{"long", std::string(1'000'000, 'x')}};
  try {
    static_cast<void>(get<int>(object, "long", "t"));
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_LT(std::string(e.what()).size(), 400u);
  }
  const std::string deep = "{\"a\": " + std::string(200'000, '[') + std::string(200'000, ']') + "}";
  EXPECT_UQA_ERROR(get<int>(parse_json(deep, "t"), "a", "t"), ErrorCode::kData, "a list of 1");
  try {
    static_cast<void>(parse_json("\"" + std::string(1'000'000, 'x'), "t"));
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_LT(std::string(e.what()).size(), 400u);
  }
}

TEST(Json, DamagedTextIsADataError) {
  EXPECT_UQA_ERROR(parse_json("{\"a\": ", "x.json"), ErrorCode::kData, "x.json is not valid JSON at byte");
  EXPECT_UQA_ERROR(parse_json("", "x.json"), ErrorCode::kData, "x.json is not valid JSON");
  EXPECT_UQA_ERROR(parse_json("\"\xff\"", "x.json"), ErrorCode::kData, "x.json is not valid JSON");
  EXPECT_UQA_ERROR(parse_json("[1e999]", "x.json"), ErrorCode::kData, "x.json is not valid JSON");
  EXPECT_UQA_ERROR(parse_json("{}\n{}", "x.json"), ErrorCode::kData, "x.json is not valid JSON");
  const tests::TempDir dir;
  EXPECT_UQA_ERROR(read_json(dir.path() / "absent.json"), ErrorCode::kData, "absent.json");
  write_file_atomic(dir.path() / "good.json", "[1]");
  EXPECT_EQ(read_json(dir.path() / "good.json").at(0), 1);
}

}  // namespace
}  // namespace uqa
