// The keeper: the process that keeps one volume open and serves it, for as long as somebody needs
// it.
//
// It holds the volume's lock, runs the volume engine on one loop, answers the control socket
// (docs/formats/keeper-control.md) and serves NBD. It needs no daemon to go on serving.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "disk/types.h"

namespace berth::machine {

struct KeeperOptions {
  std::string state_dir;        // STATE_DIR/volumes/VOLUME is the volume
  std::string run_dir;          // RUN_DIR/keepers/ID/ has its sockets; see layout.h
  std::string id;               // of this keeper, a name as in layout.h
  std::string volume;           // name of the volume
  std::vector<int> listen_fds;  // listening sockets that outlive the keeper; it takes ownership
  bool direct = true;           // O_DIRECT for the data file
  std::size_t hot_regions_max = disk::hot_regions_default;
};

/// Runs until SIGTERM, SIGINT or the `shutdown` request, then closes the volume cleanly. Owns the
/// process's signal handling and logs to standard error. The process's exit code: 0 after a clean
/// end, 1 with one message on standard error otherwise (such as `in_use`: another keeper has the
/// volume).
int run_keeper(const KeeperOptions& options);

}  // namespace berth::machine
