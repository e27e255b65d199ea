#include "models/format/safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include <gtest/gtest.h>

#include "core/json.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace uqa::format {
namespace {

std::string file_with(std::string_view header, std::size_t data_bytes) {
  const std::uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + std::string(header) + std::string(data_bytes, 'd');
}

SafetensorsHeader parse(const std::string& file) { return parse_safetensors(std::as_bytes(std::span(file)), "w.safetensors"); }

void expect_refused(const std::string& file, const std::string& part) {
  EXPECT_UQA_ERROR(parse(file), ErrorCode::kData, part);
  EXPECT_UQA_ERROR(parse(file), ErrorCode::kData, "w.safetensors");
}

TEST(Safetensors, ParsesTensorsAndMetadata) {
  const std::string header =
      R"({"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},)"
      R"("b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]}, "e": {"dtype": "I64", "shape": [0, 5], "data_offsets": [26, 26]}})";
  const auto parsed = parse(file_with(header, 26));
  ASSERT_EQ(parsed.tensors.size(), 3u);
  const auto& a = parsed.tensors.at("a");
  EXPECT_EQ(a.dtype, "F32");
  EXPECT_EQ(a.shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(a.begin, 8 + header.size());
  EXPECT_EQ(a.end - a.begin, 24u);
  EXPECT_EQ(parsed.tensors.at("b").begin, a.end);
  EXPECT_TRUE(parsed.tensors.at("b").shape.empty());
  EXPECT_EQ(parsed.tensors.at("e").begin, parsed.tensors.at("e").end);
  EXPECT_EQ(parsed.metadata.at("format"), "pt");
  EXPECT_TRUE(parse(file_with("{}", 0)).tensors.empty());
}

TEST(Safetensors, RefusesLengthsBeyondTheFile) {
  expect_refused("", "0 bytes, is too short");
  expect_refused("1234567", "7 bytes, is too short");
  auto file = file_with("{}", 0);
  for (const std::uint64_t length : {std::uint64_t{3}, std::uint64_t{1} << 40, std::numeric_limits<std::uint64_t>::max()}) {
    std::memcpy(file.data(), &length, 8);
    expect_refused(file, "header length = ");
  }
  const std::string header = R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})";
  expect_refused(file_with(header, 7), "truncated or damaged");
}

TEST(Safetensors, RefusesBadJson) {
  expect_refused(file_with("", 0), "not valid JSON");
  expect_refused(file_with("{", 0), "not valid JSON");
  expect_refused(file_with("{}x", 0), "not valid JSON");
  expect_refused(file_with("{\"a\": 1e999}", 0), "out of range");
  expect_refused(file_with("[]", 0), "must be a JSON object");
  expect_refused(file_with("{\"a\xFF\": 1}", 0), "not valid JSON");
  expect_refused(file_with(std::string(100'000, '['), 0), "nested deeper");
  expect_refused(file_with(R"({"a": 3})", 0), "must be an object with dtype");
  expect_refused(file_with(R"({"__metadata__": 3})", 0), "__metadata__ must be an object");
  expect_refused(file_with(R"({"__metadata__": {"k": 3}})", 0), "__metadata__ key 'k' must be a text");
}

TEST(Safetensors, RefusesDuplicateKeys) {
  const std::string a = R"("a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]})";
  expect_refused(file_with("{" + a + ", " + a + "}", 1), "names 'a' twice");
  expect_refused(file_with(R"({"a": {"dtype": "U8", "dtype": "I8", "shape": [1], "data_offsets": [0, 1]}})", 1), "names 'dtype' twice");
  const std::string b = R"("b": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]})";
  EXPECT_EQ(parse(file_with("{" + a + ", " + b + "}", 2)).tensors.size(), 2u);  // equal keys of different objects are fine
}

TEST(Safetensors, RefusesEntriesThatContradictThemselves) {
  const auto entry = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return file_with(R"({"a": {"dtype": ")" + dtype + R"(", "shape": )" + shape + R"(, "data_offsets": )" + offsets + "}}", 8);
  };
  EXPECT_EQ(parse(entry("F32", "[2]", "[0, 8]")).tensors.size(), 1u);
  expect_refused(entry("F31", "[2]", "[0, 8]"), "dtype = 'F31'");
  expect_refused(entry("F32", "[3]", "[0, 8]"), "need 12");
  expect_refused(entry("F32", "[2]", "[8, 0]"), "must lie inside");
  expect_refused(entry("F32", "[2]", "[4, 12]"), "must lie inside");
  expect_refused(entry("F32", "[2]", "[-8, 0]"), "whole number >= 0");
  expect_refused(entry("F32", "[-2]", "[0, 8]"), "whole number >= 0");
  expect_refused(entry("F32", "[2.0]", "[0, 8]"), "whole number >= 0");
  expect_refused(entry("F32", "[\"2\"]", "[0, 8]"), "whole number >= 0");
  expect_refused(entry("F32", "2", "[0, 8]"), "shape a list");
  expect_refused(entry("F32", "[2]", "[0, 8, 8]"), "two numbers");
  expect_refused(entry("F32", "[2]", "[0]"), "two numbers");
  expect_refused(entry("F32", "[2]", "[0, 18446744073709551616]"), "whole number >= 0");
  expect_refused(entry("F32", "[2]", "[18446744073709551612, 4]"), "must lie inside");
  expect_refused(entry("F32", "[4611686018427387904, 4]", "[0, 0]"), "overflows");
  expect_refused(entry("F32", "[4294967296, 4294967296]", "[0, 0]"), "overflows");  // 2^66 wraps to 0 bytes
  expect_refused(entry("F32", "[0, 4611686018427387904, 4]", "[0, 0]"), "overflows");
  expect_refused(entry("F32", "[9223372036854775808]", "[0, 0]"), "is too large");
  expect_refused(entry("F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0, 4]"), "at most 32 sizes");
}

TEST(Safetensors, RefusesOverlap) {
  const auto two = [](const char* first, const char* second) {
    return file_with(fmt::format(R"({{"a": {{"dtype": "U8", "shape": [4], "data_offsets": {}}}, "b": {{"dtype": "U8", "shape": [4], "data_offsets": {}}}}})",
                                 first, second), 8);
  };
  EXPECT_EQ(parse(two("[4, 8]", "[0, 4]")).tensors.size(), 2u);
  expect_refused(two("[0, 4]", "[3, 7]"), "'a' and 'b' overlap");
  expect_refused(two("[2, 6]", "[2, 6]"), "overlap");
}

TEST(Safetensors, WritesWhatItReadsWithoutGapsAndAligned) {
  const tests::TempDir dir;
  const auto path = dir.path() / "w.safetensors";
  const std::string bytes = "abc";
  const std::vector<float> floats{1.5f, -2.0f, 3.0f};
  const std::vector<std::int64_t> longs{7};
  write_safetensors(path,
                    {{"u8", "U8", {3}, std::as_bytes(std::span(bytes))},
                     {"none", "F32", {0, 4}, {}},
                     {"f32", "F32", {3, 1}, std::as_bytes(std::span(floats))},
                     {"i64 \"quoted\"", "I64", {}, std::as_bytes(std::span(longs))}},
                    {{"step", "5"}});
  const MappedFile file(path);
  const auto header = parse_safetensors(file.bytes(), path.string());
  ASSERT_EQ(header.tensors.size(), 4u);
  EXPECT_EQ(header.metadata.at("step"), "5");
  std::uint64_t total = 0, first = file.bytes().size();
  for (const auto& [name, info] : header.tensors) {
    EXPECT_EQ(info.begin % dtype_bytes(info.dtype), 0u) << name;
    total += info.end - info.begin;
    first = std::min(first, info.begin);
  }
  EXPECT_EQ(first % 8, 0u);
  EXPECT_EQ(first + total, file.bytes().size());
  const auto& f32 = header.tensors.at("f32");
  EXPECT_EQ(std::memcmp(file.bytes().data() + f32.begin, floats.data(), 12), 0);
  EXPECT_EQ(f32.shape, (std::vector<std::int64_t>{3, 1}));
  const auto& u8 = header.tensors.at("u8");
  EXPECT_EQ(std::memcmp(file.bytes().data() + u8.begin, "abc", 3), 0);
}

TEST(Safetensors, WriterRefusesWhatItsCallerGotWrong) {
  const tests::TempDir dir;
  const auto path = dir.path() / "w.safetensors";
  const std::string bytes = "abcd";
  const auto data = std::as_bytes(std::span(bytes));
  EXPECT_UQA_ERROR(write_safetensors(path, {{"a", "U8", {3}, data}}), ErrorCode::kInternal, "is given 4 bytes");
  EXPECT_UQA_ERROR(write_safetensors(path, {{"a", "U8", {-4}, data}}), ErrorCode::kInternal, "is given 4 bytes");
  EXPECT_UQA_ERROR(write_safetensors(path, {{"a", "U8", {4}, data}, {"a", "U8", {4}, data}}), ErrorCode::kInternal, "given twice");
  EXPECT_UQA_ERROR(write_safetensors(path, {{"__metadata__", "U8", {4}, data}}), ErrorCode::kInternal, "reserved");
  EXPECT_UQA_ERROR(write_safetensors(path, {{"a", "F3", {4}, data}}), ErrorCode::kData, "dtype = 'F3'");
  EXPECT_FALSE(fs::exists(path));
}

}  // namespace
}  // namespace uqa::format
