// tests/dist/parallel/layouts.h - the meshes that a rank count allows, and what the tests of stages share.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/file.h"
#include "tests/dist/dist_world.h"
#include "tests/support/temp_dir.h"

namespace uqa::testing {

struct Layout {
  int dp, tp;
  [[nodiscard]] std::string name() const { return "dp" + std::to_string(dp) + "_tp" + std::to_string(tp); }
};

/// All ranks on one layer; with four ranks also two by two.
inline std::vector<Layout> tensor_layouts() {
  const int size = dist_world().size();
  std::vector<Layout> layouts{{1, size}};
  if (size == 4) layouts.push_back({2, 2});
  return layouts;
}

/// A directory of rank 0 that all ranks see.
class SharedDir {
 public:
  SharedDir() {
    if (dist_world().rank() == 0) dir_ = std::make_unique<tests::TempDir>();
    path_ = comm::broadcast_text(dir_ ? dir_->path().string() : "", 0, dist_world());
  }
  ~SharedDir() { comm::barrier(dist_world()); }  // others may still read
  SharedDir(const SharedDir&) = delete;
  SharedDir& operator=(const SharedDir&) = delete;
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  std::unique_ptr<tests::TempDir> dir_;
  fs::path path_;
};

}  // namespace uqa::testing
