#include "core/file.h"

#include <algorithm>
#include <csignal>
#include <fstream>
#include <functional>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace uqa {
namespace {

using ::testing::ElementsAre;
using tests::TempDir;

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// Runs `work` in a child whose files may not grow beyond `max_bytes` (writes then fail as on a full disk); its result is the exit code.
int run_with_full_disk(rlim_t max_bytes, const std::function<int()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{max_bytes, max_bytes};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    int code = 99;
    try {
      code = work();
    } catch (...) {
    }
    ::_exit(code);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(WriteFileAtomic, ReplacesTheContentAndLeavesNothingElse) {
  const TempDir dir;
  const auto path = dir.path() / "run.json";
  write_file_atomic(path, "first");
  EXPECT_EQ(read_file(path), "first");
  write_file_atomic(path, std::string("sec\0nd", 6));
  EXPECT_EQ(read_file(path), std::string("sec\0nd", 6));
  write_file_atomic(path, "");
  EXPECT_EQ(read_file(path), "");
  EXPECT_THAT(names_in(dir.path()), ElementsAre("run.json"));
}

TEST(WriteFileAtomic, JoinsPartsInOrder) {
  const TempDir dir;
  const std::vector<std::string_view> parts{"ab", "", "cde"};
  write_file_atomic(dir.path() / "f", parts);
  EXPECT_EQ(read_file(dir.path() / "f"), "abcde");
}

TEST(WriteFileAtomic, KeepsTheEarlierFileWhenTheDiskIsFull) {
  const TempDir dir;
  const auto path = dir.path() / "state";
  write_file_atomic(path, "earlier");
  const int code = run_with_full_disk(4096, [&] {
    try {
      write_file_atomic(path, std::string(1 << 20, 'x'));
    } catch (const Error& e) {
      return std::string(e.what()).find(path.string()) != std::string::npos ? static_cast<int>(e.code()) : 98;
    }
    return 0;
  });
  EXPECT_EQ(code, static_cast<int>(ErrorCode::kData));
  EXPECT_EQ(read_file(path), "earlier");
  EXPECT_THAT(names_in(dir.path()), ElementsAre("state"));
}

TEST(WriteFileAtomic, NamesAnAbsentDirectory) {
  const TempDir dir;
  EXPECT_UQA_ERROR(write_file_atomic(dir.path() / "absent" / "f", "x"), ErrorCode::kData, "absent");
}

TEST(MappedFile, ReadsMovesAndRefuses) {
  const TempDir dir;
  write_file_atomic(dir.path() / "f", "bytes");
  write_file_atomic(dir.path() / "empty", "");
  MappedFile a(dir.path() / "f");
  MappedFile b(std::move(a));
  EXPECT_EQ(b.bytes().size(), 5u);
  MappedFile c;
  c = std::move(b);
  EXPECT_EQ(static_cast<char>(c.bytes()[4]), 's');
  EXPECT_TRUE(MappedFile(dir.path() / "empty").bytes().empty());
  EXPECT_EQ(read_file(dir.path() / "empty"), "");
  EXPECT_UQA_ERROR(MappedFile(dir.path() / "absent"), ErrorCode::kData, "absent");
  EXPECT_UQA_ERROR(MappedFile(dir.path()), ErrorCode::kData, "not a regular file");
}

TEST(OutputDir, AppearsOnlyAtCommit) {
  const TempDir dir;
  const auto path = dir.path() / "out";
  {
    OutputDir out(path, {.kind = "uqa.test"});
    fs::create_directory(out.path() / "sub");
    write_file_atomic(out.path() / "sub" / "f", "x");
    EXPECT_FALSE(fs::exists(path));
    out.commit();
  }
  EXPECT_EQ(read_file(path / "sub" / "f"), "x");
  EXPECT_EQ(read_file(path / ".uqa-kind"), "uqa.test\n");
  EXPECT_THAT(names_in(dir.path()), ElementsAre("out"));
}

TEST(OutputDir, LeavesNothingWithoutCommit) {
  const TempDir dir;
  {
    OutputDir out(dir.path() / "out/", {.kind = "uqa.test"});
    write_file_atomic(out.path() / "f", "x");
  }
  EXPECT_THAT(names_in(dir.path()), ElementsAre());
}

TEST(OutputDir, RefusesADirectoryThatHoldsSomething) {
  const TempDir dir;
  const auto path = dir.path() / "out";
  fs::create_directory(path);
  write_file_atomic(path / "precious", "x");
  EXPECT_UQA_ERROR(OutputDir(path, {.kind = "uqa.test"}), ErrorCode::kConfig, "--overwrite");
  EXPECT_EQ(read_file(path / "precious"), "x");
  write_file_atomic(dir.path() / "file", "x");
  EXPECT_UQA_ERROR(OutputDir(dir.path() / "file", {.kind = "uqa.test", .overwrite = true}), ErrorCode::kConfig, "not a directory");
  EXPECT_UQA_ERROR(OutputDir(dir.path() / "file" / "below", {.kind = "uqa.test"}), ErrorCode::kData, "cannot create");
  EXPECT_THAT(names_in(dir.path()), ElementsAre("file", "out"));
}

TEST(OutputDir, AcceptsAnEmptyDirectory) {
  const TempDir dir;
  fs::create_directory(dir.path() / "out");
  OutputDir out(dir.path() / "out", {.kind = "uqa.test"});
  write_file_atomic(out.path() / "f", "x");
  out.commit();
  EXPECT_EQ(read_file(dir.path() / "out" / "f"), "x");
}

TEST(OutputDir, OverwriteKeepsTheEarlierDirectoryUntilCommit) {
  const TempDir dir;
  const auto path = dir.path() / "out";
  fs::create_directory(path);
  write_file_atomic(path / "earlier", "x");
  { OutputDir abandoned(path, {.kind = "uqa.test", .overwrite = true}); }
  EXPECT_EQ(read_file(path / "earlier"), "x");
  OutputDir out(path, {.kind = "uqa.test", .overwrite = true});
  write_file_atomic(out.path() / "later", "y");
  EXPECT_EQ(read_file(path / "earlier"), "x");
  out.commit();
  EXPECT_THAT(names_in(path), ElementsAre(".uqa-kind", "later"));
  EXPECT_THAT(names_in(dir.path()), ElementsAre("out"));
}

TEST(OutputDir, FullDiskAtCommitKeepsTheEarlierDirectory) {
  const TempDir dir;
  const auto path = dir.path() / "out";
  fs::create_directory(path);
  write_file_atomic(path / "earlier", "x");
  const int code = run_with_full_disk(0, [&] {
    try {
      OutputDir out(path, {.kind = "uqa.test", .overwrite = true});
      out.commit();  // cannot even write its marker
    } catch (const Error& e) {
      return static_cast<int>(e.code());
    }
    return 0;
  });
  EXPECT_EQ(code, static_cast<int>(ErrorCode::kData));
  EXPECT_EQ(read_file(path / "earlier"), "x");
  EXPECT_THAT(names_in(dir.path()), ElementsAre("out"));
}

}  // namespace
}  // namespace uqa
