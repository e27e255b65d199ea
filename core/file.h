// core/file.h - files and directories that are whole or absent: atomic writes, mapped reads, guarded output directories.
//
//   write_file_atomic(run_dir / "run.json", text);               // temporary name, fsync, rename, fsync of the parent
//   const MappedFile weights(path);                              // read-only; throws Error(kData) naming the file
//   OutputDir out(path, {.kind = "uqa.shards", .overwrite = false});   // writes go to out.path(); out.commit() publishes
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace uqa {

namespace fs = std::filesystem;

/// Whole file as bytes. Throws Error(kData) naming the file and the system's reason.
[[nodiscard]] std::string read_file(const fs::path& path);

/// Replaces `path` by `bytes` so that a reader sees the old or the new content, never a part. Throws Error(kData)
/// (a full disk among the reasons); the earlier file is then untouched and the temporary one removed.
void write_file_atomic(const fs::path& path, std::string_view bytes);
/// Same, with the content given in pieces that are written one after the other (large files need no second copy).
void write_file_atomic(const fs::path& path, std::span<const std::string_view> parts);

/// Replaces a file by content that comes piece by piece: as write_file_atomic, but nothing is there before commit(). The destructor removes
/// what was not committed.
class AtomicFile {
 public:
  explicit AtomicFile(fs::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  void append(std::string_view bytes);  ///< Error(kData), a full disk among the reasons
  void commit();                        ///< syncs, renames, syncs the parent. Error(kData)

 private:
  fs::path path_, temporary_;
  int fd_ = -1;
};

/// Flushes one file, or a directory's entries, to the device. Throws Error(kData).
void sync_path(const fs::path& path);

/// Read-only mapping of a whole file; move-only. An empty file maps to an empty span. Throws Error(kData).
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const fs::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }
  [[nodiscard]] const fs::path& path() const noexcept { return path_; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  fs::path path_;
};

struct OutputDirOptions {
  std::string kind;        ///< what the directory will hold, for example "uqa.shards"; written to its marker file
  bool overwrite = false;  ///< replace a directory that holds something else or an earlier result
};

/// A directory that appears whole or not at all: writes go to a sibling `<name>.tmp`, commit() syncs and renames it.
/// The constructor refuses (Error(kConfig)) a `path` that exists and is not empty, unless `overwrite`; it never removes
/// the earlier directory before commit(). The destructor removes an uncommitted temporary directory.
/// One rank (rank 0) constructs and commits; other ranks may write files into path() in between.
class OutputDir {
 public:
  OutputDir(fs::path path, OutputDirOptions options);
  ~OutputDir();
  OutputDir(const OutputDir&) = delete;
  OutputDir& operator=(const OutputDir&) = delete;

  /// Where to write until commit().
  [[nodiscard]] const fs::path& path() const noexcept { return staging_; }
  /// Syncs every file, writes the marker, and renames over the final place.
  void commit();

 private:
  fs::path final_;
  fs::path staging_;
  OutputDirOptions options_;
  bool committed_ = false;
};

}  // namespace uqa
