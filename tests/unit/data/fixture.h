// tests/unit/data/fixture.h - temporary directories, small source files and imports for the data tests.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "core/error.h"
#include "core/file.h"
#include "data/dataset.h"
#include "data/import/import.h"
#include "data/import_schema.h"

namespace uqa::data {

/// A new directory for every test, removed at its end.
class DataTest : public ::testing::Test {
 protected:
  DataTest() {
    std::string name = (fs::temp_directory_path() / "uqa_data_XXXXXX").string();
    dir_ = ::mkdtemp(name.data());
  }
  ~DataTest() override {
    std::error_code ec;
    fs::remove_all(dir_, ec);
  }

  fs::path write(const std::string& name, const std::string& text) const {
    std::ofstream(dir_ / name, std::ios::binary) << text;
    return dir_ / name;
  }

  /// Events in CSV with columns user, item, time, and a multi-valued column tags.
  static SourceSchema csv_schema() {
    return SourceSchema::from_json(Json::parse(R"({
      "name": "tiny", "layout": "events", "format": "csv",
      "interactions": {"user": "user", "item": "item", "time": "time"},
      "features": [{"name": "item", "table": "item"}, {"name": "tags", "table": "tag", "column": "tags", "separator": "|"}]})"),
                                   "schema");
  }
  static constexpr const char* kCsv =
      "user,item,time,tags\n"
      "bob,i9,30,x|y\n"
      "ann,i1,20,\n"
      "bob,i1,10,y\n"
      "cat,i5,1,z\n"
      "ann,i9,20,x\n"
      "bob,i2,20,x| z |y\n";

  import::ImportReport import_files(const SourceSchema& schema, const std::vector<fs::path>& inputs, const std::string& output,
                                    int num_shards = 1) const {
    return import::run_import(schema, {.inputs = inputs, .output = dir_ / output, .num_shards = num_shards});
  }
  /// bob (3 interactions), ann (2); cat is left out.
  Dataset tiny(const std::string& output = "tiny", int num_shards = 1) const {
    const auto input = write("tiny.csv", kCsv);
    (void)import_files(csv_schema(), {input}, output, num_shards);
    return Dataset::open(dir_ / output);
  }

  fs::path dir_;
};

/// The error that `body` throws, as "code: text".
template <typename F>
std::string error_of(F&& body) {
  try {
    body();
  } catch (const Error& e) {
    return std::to_string(static_cast<int>(e.code())) + ": " + e.what();
  }
  return "no error";
}

template <typename T>
std::vector<std::int64_t> as_vector(std::span<const T> values) {
  return {values.begin(), values.end()};
}

}  // namespace uqa::data
