#include "core/signals.h"

#include <csignal>

namespace uqa {
namespace {
volatile std::sig_atomic_t flag = 0;
}

void install_stop_handlers() {
  struct sigaction action {};
  action.sa_handler = [](int) { flag = 1; };
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGUSR1, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool stop_requested() noexcept { return flag != 0; }

void request_stop() noexcept { flag = 1; }

}  // namespace uqa
