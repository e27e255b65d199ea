#include "data/dataset.h"

#include <cstring>
#include <optional>

#include "core/hash.h"
#include "data/batch.h"
#include "data/h5.h"
#include "data/manifest.h"
#include "data/shard.h"
#include "tests/unit/data/fixture.h"

namespace uqa::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

class DatasetTest : public DataTest {
 protected:
  /// Opens what is in `directory`, touching everything; the error or "no error".
  std::string opening(const fs::path& directory, ReadMode mode = ReadMode::kMap, bool verify = true) const {
    return error_of([&] {
      const auto data = Dataset::open(directory, mode, verify);
      for (std::int64_t u = 0; u < data.num_users(); ++u) {
        for (std::size_t f = 0; f < data.schema().features.size(); ++f) (void)data.values(f, u, 0, data.length(u));
      }
    });
  }
  void replace(const fs::path& path, const std::string& bytes) const { std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes; }
  /// Makes the manifest agree with changed files.
  void refresh_manifest(const fs::path& directory) const {
    auto manifest = read_manifest(directory);
    for (auto& file : manifest.files) {
      file.size_bytes = static_cast<std::int64_t>(fs::file_size(directory / file.name));
      file.xxh128 = hash_file(directory / file.name);
    }
    write_manifest(directory, manifest);
  }
  static ShardContent content() {
    ShardContent out;
    out.user_index = {0};
    out.user_id.push_back("u");
    out.offsets = {0, 2};
    out.features.push_back({.values = {0, 1}, .offsets = {}});
    return out;
  }
  static Schema one_feature() {
    return {.tables = {{.name = "item", .rows = 2}}, .features = {{.name = "item", .table = "item"}}};
  }
};

TEST_F(DatasetTest, MapAndReadGiveTheSame) {
  (void)tiny("d", 2);
  const auto mapped = Dataset::open(dir_ / "d", ReadMode::kMap), copied = Dataset::open(dir_ / "d", ReadMode::kRead);
  EXPECT_EQ(mapped.digest(), copied.digest());
  for (std::int64_t u = 0; u < mapped.num_users(); ++u) {
    EXPECT_EQ(mapped.raw_user_id(u), copied.raw_user_id(u));
    for (std::size_t f = 0; f < 2; ++f) {
      EXPECT_EQ(as_vector(mapped.values(f, u, 0, mapped.length(u))), as_vector(copied.values(f, u, 0, copied.length(u))));
    }
    EXPECT_EQ(mapped.timestamp(u, 1), copied.timestamp(u, 1));
  }
}

TEST_F(DatasetTest, CopiesStayReadableAfterTheFirstIsGone) {
  std::optional<Dataset> first = tiny();
  const Dataset second = *first;
  first.reset();
  EXPECT_EQ(second.item(0, 0), 1);
}

TEST_F(DatasetTest, OutOfRangeIsRefused) {
  const auto data = tiny();
  EXPECT_THAT(error_of([&] { (void)data.length(2); }), StartsWith("70: "));
  EXPECT_THAT(error_of([&] { (void)data.length(-1); }), StartsWith("70: "));
  EXPECT_THAT(error_of([&] { (void)data.item(1, 2); }), StartsWith("70: "));
  EXPECT_THAT(error_of([&] { (void)data.values(1, 0, 2, 1); }), StartsWith("70: "));
}

TEST_F(DatasetTest, EveryTruncationOfEveryFileIsADataError) {
  (void)tiny("d", 2);
  for (const char* name : {"manifest.json", "items.h5", "shard-00000.h5", "shard-00001.h5"}) {
    const fs::path path = dir_ / "d" / name;
    const auto whole = read_file(path);
    for (std::size_t size = 0; size + 2 < whole.size(); size += 41) {  // the manifest's last newline may go
      replace(path, whole.substr(0, size));
      EXPECT_THAT(opening(dir_ / "d"), AllOf(StartsWith("3: "), HasSubstr(name))) << size;
    }
    fs::remove(path);
    EXPECT_THAT(opening(dir_ / "d"), AllOf(StartsWith("3: "), HasSubstr(name)));
    replace(path, whole);
  }
  EXPECT_EQ(opening(dir_ / "d"), "no error");
}

TEST_F(DatasetTest, EveryChangedByteIsADataError) {
  (void)tiny("d", 1);
  for (const char* name : {"manifest.json", "items.h5", "shard-00000.h5"}) {
    const fs::path path = dir_ / "d" / name;
    const auto whole = read_file(path);
    for (std::size_t at = 0; at + 1 < whole.size(); at += 29) {
      auto damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] == 'X' ? 'Y' : 'X');
      replace(path, damaged);
      EXPECT_THAT(opening(dir_ / "d"), AllOf(StartsWith("3: "), HasSubstr(name))) << "byte " << at;
    }
    replace(path, whole);
  }
}

TEST_F(DatasetTest, TruncatedShardsAreNoticedWithoutChecksumsToo) {
  (void)tiny("d", 1);
  const fs::path path = dir_ / "d" / "shard-00000.h5";
  const auto whole = read_file(path);
  for (std::size_t size = 0; size < whole.size(); size += 97) {
    replace(path, whole.substr(0, size));
    refresh_manifest(dir_ / "d");
    for (const auto mode : {ReadMode::kMap, ReadMode::kRead}) EXPECT_THAT(opening(dir_ / "d", mode, false), StartsWith("3: ")) << size;
  }
}

TEST_F(DatasetTest, ShardOfAnotherDataSetIsRefused) {
  (void)tiny("d", 1);
  write_shard(dir_ / "d" / "shard-00000.h5", one_feature(), content(), {.source_hash = "x"});
  refresh_manifest(dir_ / "d");
  EXPECT_THAT(opening(dir_ / "d"), AllOf(StartsWith("3: "), HasSubstr("another data set")));
}

TEST_F(DatasetTest, ShardsWithWrongOffsetsAreRefused) {
  const auto path = dir_ / "s.h5";
  const auto refusal = [&](const ShardContent& bad) {
    write_shard(path, one_feature(), bad, {.source_hash = "x"});
    return error_of([&] { (void)Shard::open(path, ReadMode::kMap, nullptr); });
  };
  EXPECT_EQ(refusal(content()), "no error");
  auto bad = content();
  bad.offsets = {1, 2};
  EXPECT_THAT(refusal(bad), AllOf(StartsWith("3: "), HasSubstr("users/offsets")));
  bad = content();
  bad.user_index = {0, 1};
  bad.user_id.push_back("v");
  bad.offsets = {0, 3, 2};
  EXPECT_THAT(refusal(bad), AllOf(StartsWith("3: "), HasSubstr("must ascend")));
  bad = content();
  bad.features[0].values = {0};
  EXPECT_THAT(refusal(bad), AllOf(StartsWith("3: "), HasSubstr("must have 2")));
}

TEST_F(DatasetTest, ArraysAreAlignedTypedAndMissingOnesNamed) {
  const auto path = dir_ / "a.h5";
  auto out = h5::File::create(path);
  out.write<std::int64_t>("group/longs", std::vector<std::int64_t>{1, 2, 3});
  out.write<std::int32_t>("ints", std::vector<std::int32_t>{-7});
  out.write<float>("floats", std::vector<float>{1.5F, 2.5F});
  out.write<char>("nothing", std::vector<char>{});
  out.set_attribute("text", "héllo");
  out.set_attribute("number", std::int64_t{-5});
  out.close();
  const auto in = h5::File::open(path);
  const auto longs = in.array<std::int64_t>("group/longs");
  EXPECT_EQ(longs.count, 3);
  EXPECT_EQ(longs.offset_bytes % h5::kAlignment, 0);
  const auto bytes = read_file(path);
  std::int64_t second = 0;
  std::memcpy(&second, bytes.data() + longs.offset_bytes + 8, 8);
  EXPECT_EQ(second, 2);
  EXPECT_THAT(in.read<std::int32_t>("ints"), ElementsAre(-7));
  EXPECT_THAT(in.read<float>("floats"), ElementsAre(1.5F, 2.5F));
  EXPECT_THAT(in.read<char>("nothing"), IsEmpty());
  EXPECT_EQ(in.text_attribute("text"), "héllo");
  EXPECT_EQ(in.integer_attribute("number"), -5);
  EXPECT_FALSE(in.contains("group/absent"));
  EXPECT_FALSE(in.contains("absent/longs"));
  EXPECT_THAT(error_of([&] { (void)in.array<std::int64_t>("group/absent"); }), AllOf(StartsWith("3: "), HasSubstr("'group/absent' is missing")));
  EXPECT_THAT(error_of([&] { (void)in.array<std::int64_t>("ints"); }), AllOf(StartsWith("3: "), HasSubstr("not of type little-endian int64")));
  EXPECT_THAT(error_of([&] { (void)in.text_attribute("number"); }), StartsWith("3: "));
  EXPECT_THAT(error_of([&] { h5::File::create(dir_ / "no" / "dir.h5").close(); }), AllOf(StartsWith("3: "), HasSubstr("dir.h5")));
}

TEST_F(DatasetTest, DirectoryWithoutManifestSaysWhatIsNeeded) {
  EXPECT_THAT(opening(dir_), AllOf(StartsWith("3: "), HasSubstr("not a data directory"), HasSubstr("uqa import")));
}

TEST_F(DatasetTest, PackLaysSpansEndToEnd) {
  const auto data = tiny();
  const auto batch = pack(data, {{.user = 1, .begin = 0, .end = 2}, {.user = 0, .begin = 1, .end = 3}}, {5, 9}, Targets::kNone);
  EXPECT_THAT(batch.cu_seqlens, ElementsAre(0, 2, 4));
  EXPECT_THAT(batch.users, ElementsAre(1, 0));
  EXPECT_THAT(batch.sample_ids, ElementsAre(5, 9));
  EXPECT_THAT(batch.features[0].values, ElementsAre(1, 0, 3, 0));
  EXPECT_THAT(batch.features[0].offsets, IsEmpty());
  EXPECT_THAT(batch.features[1].values, ElementsAre(0, 0, 2, 1, 0, 1));
  EXPECT_THAT(batch.features[1].offsets, ElementsAre(0, 0, 1, 4, 6));
  EXPECT_THAT(batch.targets, IsEmpty());
  EXPECT_THAT(batch.timestamps, ElementsAre(*data.timestamp(1, 0), *data.timestamp(1, 1), *data.timestamp(0, 1), *data.timestamp(0, 2)));
  EXPECT_NE(batch.timestamps[2], batch.timestamps[3]);
}

TEST_F(DatasetTest, PackForNextItemsShiftsTargetsByOne) {
  const auto data = tiny();
  const auto batch = pack(data, {{.user = 0, .begin = 0, .end = 3}, {.user = 1, .begin = 0, .end = 2}}, {0, 1}, Targets::kNext);
  EXPECT_THAT(batch.cu_seqlens, ElementsAre(0, 2, 3));
  EXPECT_THAT(batch.features[0].values, ElementsAre(1, 3, 1));
  EXPECT_THAT(batch.targets, ElementsAre(3, 0, 0));
  EXPECT_THAT(batch.features[1].offsets, ElementsAre(0, 1, 4, 4));
}

TEST_F(DatasetTest, PackOfNothingIsAnEmptyBatch) {
  const auto batch = pack(tiny(), {}, {}, Targets::kNext);
  EXPECT_EQ(batch.num_spans(), 0);
  EXPECT_EQ(batch.num_interactions(), 0);
  EXPECT_THAT(batch.features[1].offsets, ElementsAre(0));
}

TEST_F(DatasetTest, PackRefusesSpansOutsideHistories) {
  const auto data = tiny();
  EXPECT_THAT(error_of([&] { (void)pack(data, {{.user = 0, .begin = 0, .end = 4}}, {0}, Targets::kNone); }), StartsWith("70: "));
  EXPECT_THAT(error_of([&] { (void)pack(data, {{.user = 0, .begin = 0, .end = 1}}, {0}, Targets::kNext); }), StartsWith("70: "));
  EXPECT_THAT(error_of([&] { (void)pack(data, {{.user = 0, .begin = 0, .end = 1}}, {}, Targets::kNone); }), StartsWith("70: "));
}

}  // namespace
}  // namespace uqa::data
