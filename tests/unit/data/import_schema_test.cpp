#include "data/schema.h"
#include "tests/support/source_dir.h"

#include "tests/unit/data/fixture.h"

namespace uqa::data {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

Json events() {
  return Json::parse(R"({"name": "t", "layout": "events", "format": "csv", "interactions": {"user": "u", "item": "i"},
                         "features": [{"name": "i", "table": "item"}]})");
}
std::string refusal(const Json& json) {
  return error_of([&] { (void)SourceSchema::from_json(json, "s.json"); });
}

TEST(SourceSchemaTest, EveryRecipeLoads) {
  int recipes = 0;
  for (const auto& entry : fs::directory_iterator(tests::source_dir() / "recipes")) {
    if (!entry.path().string().ends_with(".schema.json")) continue;
    const auto schema = SourceSchema::read(entry.path());
    EXPECT_FALSE(schema.features.empty());
    ++recipes;
  }
  EXPECT_GE(recipes, 2);
  const auto published = SourceSchema::read(tests::source_dir() / "recipes/uqabench.schema.json");
  EXPECT_EQ(published.features.size(), 10U);
  EXPECT_EQ(published.tables.at("item_id"), 994447);
}

TEST(SourceSchemaTest, UnknownKeysSuggestTheNearest) {
  auto json = events();
  json["interactions"]["usr"] = "x";
  EXPECT_THAT(refusal(json), AllOf(StartsWith("2: "), HasSubstr("s.json, interactions"), HasSubstr("'usr'"), HasSubstr("did you mean 'user'")));
  json = events();
  json["featurs"] = 1;
  EXPECT_THAT(refusal(json), HasSubstr("did you mean 'features'"));
  json = events();
  json["features"][0]["seperator"] = ",";
  EXPECT_THAT(refusal(json), AllOf(HasSubstr("features[0]"), HasSubstr("did you mean 'separator'")));
}

TEST(SourceSchemaTest, RefusesWhatCannotBeImported) {
  auto json = events();
  json.erase("name");
  EXPECT_THAT(refusal(json), HasSubstr("'name' is missing"));
  json = events();
  json["format"] = "parket";
  EXPECT_THAT(refusal(json), AllOf(HasSubstr("parket"), HasSubstr("did you mean 'parquet'")));
  json = events();
  json["features"] = Json::array();
  EXPECT_THAT(refusal(json), HasSubstr("'features' is empty"));
  json = events();
  json["features"].push_back(json["features"][0]);
  json["features"][1]["column"] = "i";
  EXPECT_THAT(refusal(json), HasSubstr("occurs twice"));
  json = events();
  json["features"][0]["separator"] = ",";
  EXPECT_THAT(refusal(json), HasSubstr("the first feature is the item id"));
  json = events();
  json["features"].push_back({{"name", "g"}, {"table", "g"}, {"from", "items"}});
  EXPECT_THAT(refusal(json), HasSubstr("no 'items' section"));
  json = events();
  json["tables"] = {{"itm", 5}};
  EXPECT_THAT(refusal(json), AllOf(HasSubstr("'itm'"), HasSubstr("used by no feature")));
  json = events();
  json["tables"] = {{"item", 0}};
  EXPECT_THAT(refusal(json), HasSubstr("[1, 2^31)"));
  json = events();
  json["layout"] = "user_rows";
  json.erase("interactions");
  EXPECT_THAT(refusal(json), HasSubstr("arrow or parquet"));
  json["format"] = "arrow";
  EXPECT_THAT(refusal(json), HasSubstr("must be among 'tables'"));
  EXPECT_THAT(refusal(Json::array()), StartsWith("2: "));
}

TEST(SourceSchemaTest, TextThatIsNotJsonIsAConfigurationError) {
  const fs::path path = fs::temp_directory_path() / fmt::format("uqa_schema_{}.json", ::getpid());
  write_file_atomic(path, "{\"name\": ");
  EXPECT_THAT(error_of([&] { (void)SourceSchema::read(path); }), AllOf(StartsWith("2: "), HasSubstr("not valid JSON")));
  fs::remove(path);
}

TEST(SourceSchemaTest, ItemFileIsFoundByNameOrSuffix) {
  auto json = events();
  json["items"] = {{"file", "movies.csv"}, {"id", "m"}};
  auto schema = SourceSchema::from_json(json, "s");
  EXPECT_TRUE(schema.is_item_file("/data/movies.csv"));
  EXPECT_FALSE(schema.is_item_file("/data/old_movies.csv"));
  json["items"]["file"] = "*movies.csv";
  schema = SourceSchema::from_json(json, "s");
  EXPECT_TRUE(schema.is_item_file("/data/old_movies.csv"));
  EXPECT_FALSE(schema.is_item_file("/data/ratings.csv"));
}

TEST(SchemaTest, SurvivesItsJson) {
  const Schema schema{.tables = {{.name = "item", .rows = 7}, {.name = "tag", .rows = 3}},
                      .features = {{.name = "i", .table = "item"}, {.name = "t", .table = "tag", .multi_valued = true}}};
  EXPECT_EQ(Schema::from_json(schema.to_json(), "s"), schema);
  EXPECT_EQ(schema.num_items(), 7);
  auto json = schema.to_json();
  json["features"][1]["table"] = "absent";
  EXPECT_THAT(error_of([&] { (void)Schema::from_json(json, "s"); }), AllOf(StartsWith("3: "), HasSubstr("'absent'")));
  json = schema.to_json();
  json["tables"][0]["rows"] = -1;
  EXPECT_THAT(error_of([&] { (void)Schema::from_json(json, "s"); }), StartsWith("3: "));
}

}  // namespace
}  // namespace uqa::data
