// The exit codes of the command line (DESIGN §10).
#pragma once

#include "base/error.h"

namespace berth::control {

constexpr int exit_done = 0;
constexpr int exit_failed = 1;
constexpr int exit_usage = 2;
constexpr int exit_not_found = 3;
constexpr int exit_precondition = 4;
constexpr int exit_cancelled = 5;

constexpr int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::invalid_argument: return exit_usage;
    case ErrorKind::not_found: return exit_not_found;
    case ErrorKind::precondition:
    case ErrorKind::full_backup_required:
    case ErrorKind::in_use:
    case ErrorKind::already_exists:
    case ErrorKind::read_only: return exit_precondition;
    case ErrorKind::cancelled:
    case ErrorKind::timed_out: return exit_cancelled;
    default: return exit_failed;
  }
}

}  // namespace berth::control
