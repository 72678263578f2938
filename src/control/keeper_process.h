// Processes of keepers: started in a session of their own so that they outlive the daemon, known by
// pidfd.
//
// Plain system calls; each is short.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <sys/types.h>

#include "base/fd.h"
#include "base/process.h"
#include "base/result.h"

namespace berth::control {

struct KeeperLaunch {
  std::string program;                 // what to execute: this very program
  std::vector<std::string> arguments;  // beside the directories
  std::string state_dir;
  std::string run_dir;
  std::vector<int> listen_fds;  // listening sockets that it goes on with; they stay the caller's
  std::string log_path;         // its standard error is appended there
};

struct KeeperProcess {
  pid_t pid = 0;
  Fd pidfd;
  std::uint64_t log_offset = 0;  // where its log begins in the log file, bytes
};

Result<KeeperProcess> launch_keeper(const KeeperLaunch& launch);

/// Maps all of this program and its libraries, which are the keepers' too: one that is started does
/// not wait for the disk, as long as the kernel has the memory for it. Blocking, as the disk takes.
void hold_program();

/// A duplicate of the descriptor `fd` of that process.
Result<Fd> duplicate_from(const Fd& pidfd, int fd);
/// Takes the exit status of a child that has ended, so that no zombie stays; for a person: "exit
/// code 1". Empty if it was nobody's child of ours.
std::string reap(const Fd& pidfd);

/// The last lines of a keeper's log from `offset` on, for a message.
std::string log_tail(const std::string& path, std::uint64_t offset);

}  // namespace berth::control
