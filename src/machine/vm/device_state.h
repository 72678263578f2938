// The state of a machine's devices, out of QEMU and into it: QEMU's migration stream without the
// memory (capability x-ignore-shared), over a socket in the machine's own directory.
//
// On the machine's loop. The machine stands still meanwhile.
// Source: QEMU, qapi/migration.json; DESIGN §6, rule 1.
#pragma once

#include <memory>
#include <string>

#include "async/socket.h"
#include "async/uring_loop.h"
#include "machine/vm/qemu_monitor.h"

namespace berth::machine {

constexpr std::size_t device_state_max = std::size_t{64} << 20;  // bytes

/// One that was saved to a file: `corrupt` where there is none.
Result<std::string> read_device_state(const std::string& path);

/// Where it goes through; whoever dies meanwhile leaves it.
std::string device_state_socket(const std::string& qemu_directory);

class DeviceStateReceiver {
 public:
  /// Makes everything ready while the machine still runs.
  static Task<Result<std::unique_ptr<DeviceStateReceiver>>> prepare(UringLoop& loop,
                                                                    QemuMonitor& machine);
  ~DeviceStateReceiver();

  /// The state of a machine that is stopped; it stays so.
  Task<Result<std::string>> receive();
  /// After receive(): QEMU agrees that it was all, and the machine may go on.
  Task<Result<void>> completed();

 private:
  DeviceStateReceiver(UringLoop& loop, QemuMonitor& machine, std::string path,
                      std::unique_ptr<SocketListener> listener);

  UringLoop& loop_;
  QemuMonitor& machine_;
  const std::string path_;
  std::unique_ptr<SocketListener> listener_;
};

/// All of that, of a machine that stands still, and stays so.
Task<Result<std::string>> take_device_state(UringLoop& loop, QemuMonitor& machine);

/// Gives it to a QEMU that was started with `-incoming defer`; the machine stands still afterwards.
/// A state that does not fit is `precondition`, with QEMU's words.
Task<Result<void>> load_device_state(UringLoop& loop, QemuMonitor& machine, std::string state);

}  // namespace berth::machine
