// A QEMU that runs and takes commands: the seam between who owns it (a machine, a container's
// microVM) and what works on it.
#pragma once

#include <string>

#include <sys/types.h>

#include "async/task.h"
#include "base/result.h"
#include "machine/control_protocol.h"

namespace berth::machine {

class QemuMonitor {
 public:
  virtual ~QemuMonitor() = default;
  /// Runs a command of QMP; the member `return` of its answer.
  virtual Task<Result<Json>> command(std::string name, Json arguments) = 0;
  /// The directory that is this QEMU's alone.
  virtual std::string qemu_directory() const = 0;
  /// That it runs as where its keeper is root.
  virtual uid_t qemu_user() const = 0;
};

}  // namespace berth::machine
