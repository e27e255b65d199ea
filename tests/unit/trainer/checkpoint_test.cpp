#include "trainer/checkpoint.h"

#include <csignal>
#include <fstream>

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "core/hash.h"
#include "toy_task.h"

namespace uqa::trainer {
namespace {

using test::TemporaryDirectory;

std::vector<NamedParameter> make_tensors(double value) {
  return {{"model.big", at::full({64, 32}, value)}, {"model.small", at::full({7}, value + 1)}, {"optim.scalar", at::full({}, value + 2)},
          {"model.empty", at::zeros({0, 3})}};
}

void write(const fs::path& directory, std::int64_t step, double value, const Json& loop = Json::object(), std::int64_t keep = 2,
           const comm::Communicator& comm = {}) {
  CheckpointWriter writer(directory, comm, keep);
  writer.start(step, make_tensors(value), loop);
  EXPECT_TRUE(writer.in_flight());
  writer.commit();
  EXPECT_FALSE(writer.in_flight());
  EXPECT_EQ(writer.latest_step(), step);
}

/// The text of the Error(kData) that loading `path` gives; "" when it loads.
std::string load_error(const fs::path& path, const std::vector<NamedParameter>& into, Coverage coverage = Coverage::kAll) {
  try {
    (void)load_checkpoint(path, into, coverage);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kData) << e.what();
    return e.what();
  }
  return "";
}

std::set<std::string> names_in(const fs::path& directory) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) names.insert(entry.path().filename().string());
  return names;
}

TEST(Checkpoint, ComesBackAsItWasWritten) {
  const TemporaryDirectory dir("checkpoint_round_trip");
  write(dir.path(), 12, 0.5, {{"position", 7}, {"best_metric", 0.1}});
  EXPECT_EQ(latest_checkpoint(dir.path()), 12);
  const auto into = make_tensors(0);
  const Json loop = load_checkpoint(checkpoint_path(dir.path(), 12), into);
  EXPECT_EQ(loop["position"], 7);
  EXPECT_EQ(loop["best_metric"].get<double>(), 0.1);
  const auto expected = make_tensors(0.5);
  for (std::size_t i = 0; i < into.size(); ++i) EXPECT_TRUE(at::equal(into[i].tensor, expected[i].tensor)) << into[i].name;
}

TEST(Checkpoint, IsWrittenFromACopy) {
  const TemporaryDirectory dir("checkpoint_copy");
  CheckpointWriter writer(dir.path(), {}, 2);
  const auto tensors = make_tensors(3);
  writer.start(1, tensors, Json::object());
  for (const auto& t : tensors) t.tensor.fill_(-1);
  writer.commit();
  const auto into = make_tensors(0);
  (void)load_checkpoint(checkpoint_path(dir.path(), 1), into);
  EXPECT_TRUE(at::equal(into[0].tensor, make_tensors(3)[0].tensor));
}

TEST(Checkpoint, OfThreeRanksLoadsOnOne) {
  const TemporaryDirectory dir("checkpoint_ranks");
  comm::run_ranks(3, [&](const comm::Communicator& comm) { write(dir.path(), 4, 1.5, {{"step", 4}}, 2, comm); });
  const auto names = names_in(checkpoint_path(dir.path(), 4));
  EXPECT_TRUE(names.contains("rank-0.safetensors") && names.contains("rank-1.safetensors") && names.contains("rank-2.safetensors"));
  const auto into = make_tensors(0);
  (void)load_checkpoint(checkpoint_path(dir.path(), 4), into);
  const auto expected = make_tensors(1.5);
  for (std::size_t i = 0; i < into.size(); ++i) EXPECT_TRUE(at::equal(into[i].tensor, expected[i].tensor)) << into[i].name;
}

TEST(Checkpoint, GivesEveryTensorToExactlyOneRankAndBalancesBytes) {
  std::vector<NamedParameter> tensors;
  for (std::int64_t i = 1; i <= 20; ++i) tensors.push_back({fmt::format("t{}", i), at::zeros({i * 10})});
  const auto stored = assign_slices(tensors, std::vector<std::vector<std::vector<models::SliceRange>>>(3));
  std::vector<std::int64_t> bytes(3, 0);
  std::set<std::size_t> seen;
  for (const auto& slice : stored) {
    bytes.at(static_cast<std::size_t>(slice.rank)) += static_cast<std::int64_t>(tensors[slice.tensor].tensor.nbytes());
    EXPECT_FALSE(slice.range.has_value());
    EXPECT_TRUE(seen.insert(slice.tensor).second);
  }
  EXPECT_EQ(seen.size(), tensors.size());
  for (const auto b : bytes) EXPECT_NEAR(static_cast<double>(b), 2100.0 * 4 / 3, 80);
}

TEST(Checkpoint, KeepsTheNewestAndTheBest) {
  const TemporaryDirectory dir("checkpoint_keep");
  for (const std::int64_t step : {1, 2, 3, 4, 5}) write(dir.path(), step, 0, {{"best_step", 2}}, 2);
  EXPECT_EQ(names_in(dir.path()), (std::set<std::string>{"latest", "step-2", "step-4", "step-5"}));
}

TEST(Checkpoint, HalfWrittenOneIsIgnoredAndRemoved) {
  const TemporaryDirectory dir("checkpoint_half");
  write(dir.path(), 1, 1.0);
  fs::create_directories(dir.path() / "step-2.tmp");
  std::ofstream(dir.path() / "step-2.tmp" / "rank-0.safetensors") << "part";
  CheckpointWriter writer(dir.path(), {}, 2);
  EXPECT_EQ(writer.latest_step(), 1);
  EXPECT_FALSE(fs::exists(dir.path() / "step-2.tmp"));
}

TEST(Checkpoint, WritesAgainOverOneThatLatestNeverReached) {
  const TemporaryDirectory dir("checkpoint_again");
  write(dir.path(), 1, 1.0);
  write(dir.path(), 2, 2.0);
  write_file_atomic(dir.path() / "latest", "step-1\n");  // as after a crash between the rename and the move of `latest`
  write(dir.path(), 2, 5.0);
  const auto into = make_tensors(0);
  (void)load_checkpoint(checkpoint_path(dir.path(), 2), into);
  EXPECT_TRUE(at::equal(into[0].tensor, make_tensors(5)[0].tensor));
}

TEST(Checkpoint, NoticesAChangedByteInEveryFile) {
  const TemporaryDirectory dir("checkpoint_corrupt");
  write(dir.path(), 1, 1.0, {{"epoch", 3}});
  const fs::path path = checkpoint_path(dir.path(), 1);
  for (const char* name : {"rank-0.safetensors", "manifest.json"}) {
    const std::string good = read_file(path / name);
    for (const std::size_t at : {good.size() / 3, good.size() / 2, good.size() - 3}) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 1);
      write_file_atomic(path / name, bad);
      EXPECT_NE(load_error(path, make_tensors(0)).find(name), std::string::npos) << name << " byte " << at;
    }
    write_file_atomic(path / name, good.substr(0, good.size() - 10));
    EXPECT_NE(load_error(path, make_tensors(0)).find(name), std::string::npos) << name << " cut";
    fs::remove(path / name);
    EXPECT_NE(load_error(path, make_tensors(0)).find(name), std::string::npos) << name << " gone";
    write_file_atomic(path / name, good);
  }
  EXPECT_EQ(load_error(path, make_tensors(0)), "");
}

TEST(Checkpoint, OfAnotherShapeIsRefusedWithBothShapesAndNothingIsChanged) {
  const TemporaryDirectory dir("checkpoint_shape");
  write(dir.path(), 1, 1.0);
  const fs::path path = checkpoint_path(dir.path(), 1);
  auto other = make_tensors(0);
  other[1].tensor = at::zeros({8});
  const auto text = load_error(path, other);
  EXPECT_NE(text.find("model.small"), std::string::npos) << text;
  EXPECT_NE(text.find("F32 7 "), std::string::npos) << text;
  EXPECT_NE(text.find("F32 8 "), std::string::npos) << text;
  EXPECT_EQ(other[0].tensor.abs().max().item<float>(), 0) << "checked before anything is copied";

  auto fewer = make_tensors(0);
  fewer.pop_back();
  EXPECT_NE(load_error(path, fewer).find("model.empty"), std::string::npos);
  EXPECT_EQ(load_error(path, fewer, Coverage::kSubset), "");
  auto more = make_tensors(0);
  more.push_back({"model.extra", at::zeros({1})});
  EXPECT_NE(load_error(path, more).find("model.extra"), std::string::npos);
}

TEST(Checkpoint, StoredInSlicesIsPutTogether) {
  const TemporaryDirectory dir("checkpoint_slices");
  const fs::path path = checkpoint_path(dir.path(), 1);
  fs::create_directories(path);
  const auto whole = at::arange(12, at::kFloat).view({6, 2});
  Manifest manifest{.step = 1, .loop = Json::object(), .files = {}, .tensors = {}};
  TensorEntry entry{.dtype = "F32", .shape = {6, 2}, .slices = {}};
  for (const auto& [rank, begin, rows] : {std::tuple{0, 0, 4}, std::tuple{1, 4, 2}}) {
    models::save_tensors(path / rank_file(rank), {{"table", whole.narrow(0, begin, rows)}});
    const std::string bytes = read_file(path / rank_file(rank));
    manifest.files[rank_file(rank)] = {.hash = hash_hex(bytes), .size_bytes = static_cast<std::int64_t>(bytes.size())};
    entry.slices.push_back({.file = rank_file(rank), .key = "table", .offset = {begin, 0}, .shape = {rows, 2}});
  }
  manifest.tensors["table"] = entry;
  write_file_atomic(path / kManifestName, manifest.to_text());
  const auto into = at::zeros({6, 2});
  (void)load_checkpoint(path, {{"table", into}});
  EXPECT_TRUE(at::equal(into, whole));

  manifest.tensors["table"].slices.pop_back();
  write_file_atomic(path / kManifestName, manifest.to_text());
  EXPECT_NE(load_error(path, {{"table", into}}).find("cover 8 of 12"), std::string::npos);
}

// Layouts of the tests below: the whole tensor holds its own row-major index.
enum class Cut { kWhole, kRows, kColumns, kStackedRows };
constexpr std::int64_t kRows = 6, kColumns = 5;

/// This rank's part of a [6, 5] tensor over `ranks` ranks. kStackedRows cuts each half of the rows, as a stacked weight is.
NamedParameter part_of_table(Cut cut, int rank, int ranks, const Tensor& whole) {
  using models::even_range;
  const std::vector<std::int64_t> shape{kRows, kColumns};
  if (cut == Cut::kWhole) return {"table", whole.clone()};
  auto layout = models::sliced(models::ShardAxis::kTable, shape, cut == Cut::kColumns ? 1 : 0, even_range(cut == Cut::kColumns ? kColumns : kRows, rank, ranks));
  if (cut == Cut::kStackedRows) {
    const auto half = even_range(kRows / 2, rank, ranks);
    layout.ranges = {half, {.begin = kRows / 2 + half.begin, .length = half.length}};
  }
  std::vector<Tensor> pieces;
  for (const auto& range : layout.ranges) pieces.push_back(whole.narrow(layout.dim, range.begin, range.length));
  return {"table", at::cat(pieces, layout.dim).contiguous(), 1, layout};
}

TEST(Checkpoint, OfAnyLayoutLoadsAtAnyOther) {
  const auto whole = at::arange(kRows * kColumns, at::kFloat).view({kRows, kColumns}), small = at::arange(3, at::kFloat);
  for (const Cut from : {Cut::kWhole, Cut::kRows, Cut::kColumns, Cut::kStackedRows}) {
    for (const int writers : {1, 2, 4, 7}) {  // 7: more ranks than rows or columns
      const TemporaryDirectory dir("checkpoint_reshard");
      comm::run_ranks(writers, [&](const comm::Communicator& comm) {
        CheckpointWriter writer(dir.path(), comm, 2);
        writer.start(1, {part_of_table(from, comm.rank(), writers, whole), {"small", small}}, Json::object());
        writer.commit();
      });
      for (const Cut to : {Cut::kWhole, Cut::kRows, Cut::kColumns, Cut::kStackedRows}) {
        for (const int readers : {1, 2, 3, 7}) {
          for (int rank = 0; rank < readers; ++rank) {
            const auto into = part_of_table(to, rank, readers, at::full_like(whole, -1)), want = part_of_table(to, rank, readers, whole);
            const auto small_into = at::zeros({3});
            (void)load_checkpoint(checkpoint_path(dir.path(), 1), {into, {"small", small_into}});
            EXPECT_TRUE(at::equal(into.tensor, want.tensor)) << static_cast<int>(from) << " of " << writers << " to " << static_cast<int>(to) << " of " << readers;
            EXPECT_TRUE(at::equal(small_into, small));
          }
        }
      }
    }
  }
}

TEST(Checkpoint, StoresASliceOnceAndSpreadsCopies) {
  // Two groups of two ranks hold the same halves: each half goes to one of its two holders, and the small tensors to the others.
  const std::vector<NamedParameter> tensors{{"table", at::zeros({3, 5}), 1, models::sliced(models::ShardAxis::kTable, {6, 5}, 0, {0, 3})}, {"a", at::zeros({4})},
                                            {"b", at::zeros({4})}};
  std::vector<std::vector<std::vector<models::SliceRange>>> held(4, std::vector<std::vector<models::SliceRange>>(3));
  for (std::size_t rank = 0; rank < 4; ++rank) held[rank][0] = {{.begin = rank % 2 == 0 ? 0 : 3, .length = 3}};
  const auto stored = assign_slices(tensors, held);
  ASSERT_EQ(stored.size(), 4U);
  EXPECT_EQ(stored[0].rank, 0);
  EXPECT_EQ(stored[1].rank, 1);
  EXPECT_EQ((std::set<int>{stored[2].rank, stored[3].rank}), (std::set<int>{2, 3}));

  held[1][0] = {{.begin = 4, .length = 2}};
  held[3][0] = {{.begin = 4, .length = 2}};
  EXPECT_THROW((void)assign_slices(tensors, held), Error) << "row 3 is nobody's";
}

TEST(Checkpoint, ReadsOnlyTheFilesThatItNeeds) {
  const TemporaryDirectory dir("checkpoint_needed");
  const auto whole = at::arange(kRows * kColumns, at::kFloat).view({kRows, kColumns});
  comm::run_ranks(2, [&](const comm::Communicator& comm) {
    CheckpointWriter writer(dir.path(), comm, 2);
    writer.start(1, {part_of_table(Cut::kRows, comm.rank(), 2, whole)}, Json::object());
    writer.commit();
  });
  const fs::path path = checkpoint_path(dir.path(), 1);
  fs::remove(path / "rank-1.safetensors");
  const auto first = part_of_table(Cut::kRows, 0, 2, at::zeros_like(whole));
  EXPECT_EQ(load_error(path, {first}), "");
  EXPECT_TRUE(at::equal(first.tensor, whole.narrow(0, 0, 3)));
  EXPECT_NE(load_error(path, {part_of_table(Cut::kRows, 1, 2, whole)}).find("rank-1.safetensors"), std::string::npos);
  EXPECT_NE(load_error(path, {part_of_table(Cut::kColumns, 0, 2, whole)}).find("rank-1.safetensors"), std::string::npos);
}

rlimit file_limit(rlim_t bytes) { return {.rlim_cur = bytes, .rlim_max = bytes}; }

TEST(CheckpointDeathTest, FullDiskIsToldAndTheEarlierOneStaysValid) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const TemporaryDirectory dir("checkpoint_full_disk");
  write(dir.path(), 1, 1.0);
  EXPECT_EXIT(
      {
        std::signal(SIGXFSZ, SIG_IGN);  // writing beyond the limit then fails as on a full disk
        const rlimit limit = file_limit(4096);
        ::setrlimit(RLIMIT_FSIZE, &limit);
        int code = 0;
        try {
          write(dir.path(), 2, 2.0);
        } catch (const Error& e) {
          std::fputs(e.what(), stderr);
          code = static_cast<int>(e.code());
        }
        std::_Exit(code);
      },
      ::testing::ExitedWithCode(3), "checkpoint of step 2 not written.*checkpoint of step 1 is still valid");
  EXPECT_EQ(latest_checkpoint(dir.path()), 1);
  EXPECT_EQ(load_error(checkpoint_path(dir.path(), 1), make_tensors(0)), "");
  EXPECT_EQ(names_in(dir.path()), (std::set<std::string>{"latest", "step-1"}));
}

}  // namespace
}  // namespace uqa::trainer
