#include "trainer/study/child.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string_view>

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/error.h"

extern char** environ;

namespace uqa::trainer::study {
namespace {

volatile std::sig_atomic_t signals = 0;

/// What mpirun, PMIx and PMI set for one process; the user's own OMPI_MCA_* and OMPI_ALLOW_* stay.
constexpr std::array kProcessVariables{"OMPI_COMM_WORLD_", "OMPI_UNIVERSE_SIZE", "OMPI_APP_CTX_", "OMPI_FIRST_RANKS",   "OMPI_NUM_APP_CTX",      "OMPI_FILE_LOCATION",
                                       "OMPI_COMMAND",     "OMPI_ARGV",          "OMPI_MCA_ess",  "OMPI_MCA_orte_",      "OMPI_MCA_initial_wdir", "OMPI_MCA_shmem_RUNTIME",
                                       "PMIX_",            "PMI_",               "PRTE_",         "SLURM_PROCID",        "SLURM_LOCALID",         "SLURM_NODEID",
                                       "SLURM_TASK_PID",   "SLURM_STEP"};

bool is_of(std::string_view variable, std::string_view prefix) { return variable.starts_with(prefix); }

}  // namespace

std::vector<std::string> child_environment(const std::vector<std::string>& ours, bool keep_slurm) {
  std::vector<std::string> out;
  for (const auto& variable : ours) {
    const bool of_process = std::any_of(kProcessVariables.begin(), kProcessVariables.end(), [&](const char* prefix) { return is_of(variable, prefix); });
    if (of_process || (!keep_slurm && is_of(variable, "SLURM_"))) continue;
    out.push_back(variable);
  }
  return out;
}

std::vector<std::string> child_environment(bool keep_slurm) {
  std::vector<std::string> ours;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) ours.emplace_back(*entry);
  return child_environment(ours, keep_slurm);
}

Child::Child(const ChildOptions& options) {
  UQA_CHECK(!options.argv.empty(), ErrorCode::kInternal, "a child without a program");
  // Everything that allocates happens before fork.
  auto environment = child_environment(options.keep_slurm);
  auto words = options.argv;
  std::vector<char*> argv, envp;
  for (auto& word : words) argv.push_back(word.data());
  for (auto& variable : environment) envp.push_back(variable.data());
  argv.push_back(nullptr);
  envp.push_back(nullptr);
  int log = -1;
  if (!options.log.empty()) {
    log = ::open(options.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    UQA_CHECK(log >= 0, ErrorCode::kData, "cannot open {}: {}", options.log.string(), std::strerror(errno));
  }
  std::array<int, 2> failure{};
  UQA_CHECK(::pipe2(failure.data(), O_CLOEXEC) == 0, ErrorCode::kInternal, "pipe: {}", std::strerror(errno));
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  UQA_CHECK(pid_ >= 0, ErrorCode::kInternal, "fork: {}", std::strerror(errno));
  if (pid_ == 0) {
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGUSR1);
    if (::getppid() != parent) ::_exit(75);
    struct sigaction plain {};
    plain.sa_handler = SIG_DFL;
    for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) ::sigaction(signal, &plain, nullptr);
    if (const int null = ::open("/dev/null", O_RDONLY); null >= 0) ::dup2(null, 0);
    if (log >= 0) {
      ::dup2(log, 1);
      ::dup2(log, 2);
    }
    ::execvpe(argv[0], argv.data(), envp.data());
    const int error = errno;
    [[maybe_unused]] const auto written = ::write(failure[1], &error, sizeof(error));
    ::_exit(127);
  }
  ::setpgid(pid_, pid_);  // also here: whichever of the two comes first
  if (log >= 0) ::close(log);
  ::close(failure[1]);
  int error = 0;
  ssize_t got = 0;
  do {
    got = ::read(failure[0], &error, sizeof(error));
  } while (got < 0 && errno == EINTR);
  ::close(failure[0]);
  if (got > 0) {
    ::waitpid(pid_, nullptr, 0);
    UQA_FAIL(ErrorCode::kConfig, "cannot start {}: {}; is it installed and in PATH?", options.argv.front(), std::strerror(error));
  }
}

std::optional<int> Child::poll() {
  if (code_) return code_;
  int status = 0;
  const pid_t got = ::waitpid(pid_, &status, WNOHANG);
  if (got == 0 || (got < 0 && errno == EINTR)) return std::nullopt;
  UQA_CHECK(got == pid_, ErrorCode::kInternal, "waitpid({}): {}", pid_, std::strerror(errno));
  code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return code_;
}

void Child::ask_to_save() const {
  if (!code_) ::kill(pid_, SIGUSR1);
}

void Child::end() const {
  if (!code_) ::kill(-pid_, SIGTERM);
}

void count_stop_signals() {
  struct sigaction action {};
  action.sa_handler = [](int) { signals = signals + 1; };
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) ::sigaction(signal, &action, nullptr);
}

int stop_signals() noexcept { return signals; }

}  // namespace uqa::trainer::study
