// trainer/study/child.h - child processes of `uqa study run`: started from words (never through a shell), watched, asked to save. Torch-free.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "core/file.h"

namespace uqa::trainer::study {

/// The environment for a child, "NAME=VALUE" each: ours without what a launcher set for this one process (ranks, sockets), so that the
/// child is not taken for a rank of our own job. `keep_slurm`: the child is a launcher such as srun, which needs the allocation.
[[nodiscard]] std::vector<std::string> child_environment(bool keep_slurm);
/// The same for a given environment.
[[nodiscard]] std::vector<std::string> child_environment(const std::vector<std::string>& ours, bool keep_slurm);

struct ChildOptions {
  std::vector<std::string> argv;  ///< program (searched in PATH) and its words
  fs::path log;                   ///< stdout and stderr are appended here; empty: ours
  bool keep_slurm = false;
};

/// One child in a process group of its own, so that a terminal's Ctrl-C reaches only us. It gets SIGUSR1 (save and exit 75) when we die.
class Child {
 public:
  /// Throws Error(kConfig) when the program cannot be started.
  explicit Child(const ChildOptions& options);
  Child(Child&&) = default;
  Child& operator=(Child&&) = default;
  /// The exit code (128 + signal for a killed one) once it has ended.
  [[nodiscard]] std::optional<int> poll();
  [[nodiscard]] pid_t pid() const { return pid_; }
  /// SIGUSR1 to the child itself (mpirun and srun forward it): save and exit 75.
  void ask_to_save() const;
  /// SIGTERM to its whole group.
  void end() const;

 private:
  pid_t pid_ = -1;
  std::optional<int> code_;
};

/// SIGINT, SIGTERM and SIGUSR1 only count from now on; how often one has come.
void count_stop_signals();
[[nodiscard]] int stop_signals() noexcept;

}  // namespace uqa::trainer::study
