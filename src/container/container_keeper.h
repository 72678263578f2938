// A container's keeper: the process that starts its microVM, speaks to the agent in it, keeps its
// log and serves those who are attached, for as long as the container runs.
//
// It needs no daemon to go on, and QEMU needs no keeper to go on: the next one finds it.
#pragma once

#include <string>
#include <vector>

namespace berth::container {

struct ContainerKeeperOptions {
  std::string state_dir;
  std::string run_dir;
  std::string memory_dir;
  std::string container;             // its name
  std::string preload;               // of the memory tracking library; "" for none
  std::vector<int> listen_fds = {};  // sockets at its published ports; it takes ownership
};

/// Runs until the container has ended and those who are attached have heard it, or until SIGTERM,
/// SIGINT or the `shutdown` request, after which QEMU runs on. The process's exit code: 0 after a
/// clean end, 1 with one message on standard error otherwise (such as `in_use`: another keeper has
/// the container).
int run_container_keeper(const ContainerKeeperOptions& options);

}  // namespace berth::container
