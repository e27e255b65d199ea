// launch/command.h - one subcommand of `uqa`: binds its options, then runs on every rank.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "launch/options.h"

namespace uqa::comm {
class Session;
}

namespace uqa::launch {

/// How a subcommand meets the launcher.
enum class Ranks {
  kMany,    ///< runs the same under mpirun -np N and srun --mpi=pmix
  kSingle,  ///< never initialises MPI
};

struct CommandEntry;

class Command {
 public:
  virtual ~Command() = default;
  /// Options, summary and example; binds to this object's fields.
  virtual OptionSet& options() = 0;
  [[nodiscard]] virtual Ranks ranks() const = 0;
  /// Fills the fields from the words after the command name; false when --help was asked for.
  [[nodiscard]] virtual bool parse(const std::vector<std::string>& words) { return options().parse(words); }
  /// Commands of its own ("uqa study plan"); null for most.
  [[nodiscard]] virtual const std::vector<CommandEntry>* actions() const { return nullptr; }
  /// True when SIGUSR1 and SIGTERM mean "save and exit 75"; otherwise they end the process.
  [[nodiscard]] virtual bool saves_on_signal() const { return false; }
  /// "cpu" or "cuda", after parse(): where tensors live. "cuda" loads the NCCL plug-in before the ranks meet.
  [[nodiscard]] virtual std::string device() const { return "cpu"; }
  /// Does the work. `session` is null for Ranks::kSingle.
  virtual void run(comm::Session* session) = 0;
};

struct CommandEntry {
  const char* name;
  const char* summary;
  std::unique_ptr<Command> (*make)();
};
/// Every subcommand, in the order that `uqa --help` lists them.
[[nodiscard]] const std::vector<CommandEntry>& commands();

// One maker a file, launch/cmd_*.cpp.
std::unique_ptr<Command> make_import_command();
std::unique_ptr<Command> make_synth_command();
std::unique_ptr<Command> make_questions_command();
std::unique_ptr<Command> make_inspect_command();
std::unique_ptr<Command> make_pretrain_command();
std::unique_ptr<Command> make_align_command();
std::unique_ptr<Command> make_evaluate_command();
std::unique_ptr<Command> make_compare_command();
std::unique_ptr<Command> make_export_command();
std::unique_ptr<Command> make_import_checkpoint_command();
std::unique_ptr<Command> make_study_command();
std::unique_ptr<Command> make_report_command();
std::unique_ptr<Command> make_bench_command();
std::unique_ptr<Command> make_completion_command();
std::unique_ptr<Command> make_man_command();
std::unique_ptr<Command> make_doctor_command();
std::unique_ptr<Command> make_verify_command();

}  // namespace uqa::launch
