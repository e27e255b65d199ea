// tests/support/temp_dir.h - a directory of its own for one test, removed afterwards.
#pragma once

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <system_error>

#include "core/error.h"
#include "core/file.h"

namespace uqa::tests {

class TempDir {
 public:
  TempDir() : path_((fs::temp_directory_path() / "uqa-test-XXXXXX").string()) {
    std::string name = path_.string();
    UQA_CHECK(::mkdtemp(name.data()) != nullptr, ErrorCode::kInternal, "cannot make {}: {}", name, std::strerror(errno));
    path_ = name;
  }
  ~TempDir() {
    std::error_code ec;
    fs::remove_all(path_, ec);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  [[nodiscard]] const fs::path& path() const noexcept { return path_; }

 private:
  fs::path path_;
};

}  // namespace uqa::tests
