// QEMU as a process: started with nothing of its keeper's, found again by the next keeper, ended.
//
// It runs in a session and control group of its own, as an unprivileged user where the keeper is
// root, with no new privileges; it does not die with the keeper. A running one is known by a word
// of its command line that no other process has, the machine's own directory: so there is no file
// about it that could be stale. Blocking; each call is short.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "base/fd.h"
#include "base/result.h"

namespace berth::machine {

struct QemuLaunch {
  std::vector<std::string> arguments;      // program first, an absolute path
  std::vector<std::string> environment;    // "NAME=value"; nothing else is in it
  std::string log_path;                    // standard output and error are appended there
  std::vector<std::string> process_files;  // of the control group, as ControlGroup has them
  std::vector<int> inherited;              // descriptors that it gets, under the same numbers
  std::optional<uid_t> uid;                // nothing: as the keeper runs
  gid_t gid = 0;
};

struct QemuProcess {
  pid_t pid = 0;
  Fd pidfd;
};

/// Returns when the program has been executed: what keeps it from that is the error.
Result<QemuProcess> launch_qemu(const QemuLaunch& launch);

/// The process of that user whose command line has `mark` in one of its words.
std::optional<QemuProcess> find_qemu(const std::string& mark);

/// The same of another program, whose path has `program` in it.
std::optional<QemuProcess> find_process(const std::string& program, const std::string& mark);

/// How a child of ours has ended, for a person: "exit code 1", "signal 9 (Killed)"; "" for somebody
/// else's child, or one that runs.
std::string reap_qemu(const Fd& pidfd);

/// The last lines of its log, without our own: its last words.
std::string last_words(const std::string& log_path);

}  // namespace berth::machine
