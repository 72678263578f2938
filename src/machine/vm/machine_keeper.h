// A machine's keeper: the process that starts its QEMU and commands it, for as long as the machine
// runs.
//
// Beside it, each of the machine's volumes has a keeper of its own (docs/decisions/0007). It needs
// no daemon to go on, and QEMU needs no keeper to go on: the next one finds it.
#pragma once

#include <string>

namespace berth::machine {

struct MachineKeeperOptions {
  std::string state_dir;
  std::string run_dir;
  std::string memory_dir;
  std::string machine;  // its name
  std::string program;  // this very program, for the watchdog
  std::string preload;  // of the memory tracking library; "" for none
};

/// Runs until the machine has ended, or until SIGTERM, SIGINT or the `shutdown` request, after
/// which QEMU runs on. The process's exit code: 0 after a clean end, 1 with one message on standard
/// error otherwise (such as `in_use`: another keeper has the machine).
int run_machine_keeper(const MachineKeeperOptions& options);

}  // namespace berth::machine
