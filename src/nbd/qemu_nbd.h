// QemuNbd: a qemu-nbd of our own that serves one image (qcow2, vmdk, vhdx, vdi, …) read-only on a
// unix socket, for a ClientFile to read. A child of the process that dies with it.
//
// The child is bound to the thread that starts it (PR_SET_PDEATHSIG): start it on a thread that
// lives as long as it is needed, such as the loop's. The image is opened by qemu, with everything
// that its header names: who may choose it is the caller's business.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include <sys/types.h>

#include "async/uring_loop.h"
#include "base/fd.h"
#include "base/result.h"

namespace berth::nbd {

class QemuNbd {
 public:
  struct Options {
    std::string image;        // an absolute path
    std::string format;       // qemu's name of it
    std::string socket_path;  // absolute; replaced if it is there
    std::string program = "/usr/bin/qemu-nbd";
    Duration start_timeout = std::chrono::seconds(20);
  };

  /// When it serves. Errors have what qemu-nbd said; `timed_out`, `not_found` where the program is
  /// missing.
  static Task<Result<std::unique_ptr<QemuNbd>>> start(UringLoop& loop, Options options);
  /// Ends the child, at once: it has nothing to lose. Clients are disconnected.
  ~QemuNbd();
  QemuNbd(const QemuNbd&) = delete;
  QemuNbd& operator=(const QemuNbd&) = delete;

  /// Of its only export, as ClientFile takes it.
  const std::string& uri() const { return uri_; }
  pid_t pid() const { return pid_; }

 private:
  explicit QemuNbd(Options options);
  Result<void> spawn();
  Task<Result<void>> wait_until_it_serves(UringLoop& loop);
  std::string output() const;

  const Options options_;
  std::string uri_;
  pid_t pid_ = -1;
  Fd process_;  // a pidfd
  Fd output_;   // what it writes to standard output and error
};

}  // namespace berth::nbd
