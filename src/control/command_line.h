// The whole of `berth`'s command line, up to the point where a process is one thing or another.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "control/daemon.h"

namespace berth::control {

/// What `berth keeper` was told.
struct KeeperArguments {
  std::string state_dir;
  std::string run_dir;
  std::string id;
  std::string volume;
  std::vector<int> listen_fds;
  std::string machine;    // in place of a volume
  std::string container;  // likewise
  std::string memory_dir;
  std::string preload;
};

/// What `berth watchdog` was told.
struct WatchdogArguments {
  std::string agent_socket;
  int fd = -1;
  std::chrono::milliseconds limit{};
};

/// The processes that the program can become; whoever wires the program says how.
struct Programs {
  std::function<int(const DaemonOptions&)> daemon;
  std::function<int(const KeeperArguments&)> keeper;
  std::function<int(const KeeperArguments&)> machine_keeper;
  std::function<int(const KeeperArguments&)> container_keeper;
  std::function<int(const WatchdogArguments&)> watchdog;
};

/// Parses, and carries out or starts what was asked for; the process's exit code.
int run_command_line(int argc, const char* const* argv, const Programs& programs);

}  // namespace berth::control
