// core/signals.h - SIGUSR1 and SIGTERM ask for "save and exit 75": a handler sets a flag, training polls it.
#pragma once

namespace uqa {

/// Installs the handlers; call once from the main thread before other threads start.
void install_stop_handlers();
/// True once a stop was asked for on this process. Ranks must agree on it (comm) before acting.
[[nodiscard]] bool stop_requested() noexcept;
/// Asks for a stop from inside (wall-time limit, tests).
void request_stop() noexcept;

}  // namespace uqa
