// probes.h: io_uring, which all of Berth's I/O goes through.

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <liburing.h>

#include <fmt/format.h>

#include "machine/host/host_text.h"
#include "machine/host/probes.h"

namespace berth::machine {
namespace {

constexpr unsigned ring_entries = 8;
constexpr const char* cost = "Berth does not work: all of its I/O goes through io_uring";

struct NeededOperation {
  unsigned code;
  const char* name;
};
/// What src/async asks for.
constexpr std::array needed_operations = {
    NeededOperation{IORING_OP_NOP, "nop"},
    NeededOperation{IORING_OP_READ, "read"},
    NeededOperation{IORING_OP_WRITE, "write"},
    NeededOperation{IORING_OP_FSYNC, "fsync"},
    NeededOperation{IORING_OP_FALLOCATE, "fallocate"},
    NeededOperation{IORING_OP_POLL_ADD, "poll"},
    NeededOperation{IORING_OP_ACCEPT, "accept"},
    NeededOperation{IORING_OP_CONNECT, "connect"},
    NeededOperation{IORING_OP_RECV, "recv"},
    NeededOperation{IORING_OP_SENDMSG, "sendmsg"},
    NeededOperation{IORING_OP_ASYNC_CANCEL, "cancel"},
};

/// A ring for as long as it lives.
class Ring {
 public:
  explicit Ring(unsigned flags) {
    io_uring_params parameters{};
    parameters.flags = flags;
    error_ = -::io_uring_queue_init_params(ring_entries, &ring_, &parameters);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring() {
    if (error_ == 0) ::io_uring_queue_exit(&ring_);
  }
  /// Why there is none, or 0.
  int error() const { return error_; }

  /// Whether an operation goes in and its completion comes out.
  bool works() {
    io_uring_sqe* entry = ::io_uring_get_sqe(&ring_);
    if (entry == nullptr) return false;
    ::io_uring_prep_nop(entry);
    io_uring_cqe* completion = nullptr;
    if (::io_uring_submit_and_wait(&ring_, 1) != 1) return false;
    return ::io_uring_peek_cqe(&ring_, &completion) == 0 && completion->res == 0;
  }

  std::vector<std::string> missing_operations() {
    const std::unique_ptr<io_uring_probe, void (*)(io_uring_probe*)> probe(
        ::io_uring_get_probe_ring(&ring_), ::io_uring_free_probe);
    std::vector<std::string> missing;
    for (const NeededOperation& operation : needed_operations) {
      const bool there =
          probe && ::io_uring_opcode_supported(probe.get(), static_cast<int>(operation.code)) != 0;
      if (!there) missing.emplace_back(operation.name);
    }
    return missing;
  }

 private:
  io_uring ring_{};
  int error_ = 0;
};

Finding no_ring(const HostView& host, int error) {
  const auto disabled = host.read_number("/proc/sys/kernel/io_uring_disabled");
  const std::string why = std::strerror(error);
  if (error == ENOSYS) {
    return missing("this kernel has no io_uring", cost, "Use a kernel with CONFIG_IO_URING=y");
  }
  if (error == EPERM && disabled.value_or(0) != 0) {
    return missing(
        fmt::format("refused by kernel.io_uring_disabled = {}", *disabled), cost,
        "sysctl kernel.io_uring_disabled=0, in /etc/sysctl.d too; with 1: run as root or "
        "in the group of kernel.io_uring_group");
  }
  if (error == EPERM || error == EACCES) {
    return missing(fmt::format("refused: {}; no sysctl forbids it", why), cost,
                   "Allow io_uring_setup, _enter and _register in this container's seccomp "
                   "profile, or in the service's SystemCallFilter=");
  }
  if (error == ENOMEM) {
    return missing(fmt::format("no ring: {}", why), cost, "Raise RLIMIT_MEMLOCK (ulimit -l)");
  }
  return missing(fmt::format("no ring: {}", why), cost, "See io_uring_setup(2) for this error");
}

}  // namespace

Finding probe_io_uring(const HostView& host) {
  Ring ring(0);
  if (ring.error() != 0) return no_ring(host, ring.error());
  const auto absent = ring.missing_operations();
  if (!absent.empty()) {
    return missing(fmt::format("a ring, but without: {}", fmt::join(absent, ", ")), cost,
                   "Use Linux 5.19 or later, and allow these operations");
  }
  if (!ring.works()) {
    return missing("a ring, but what is submitted does not complete", cost,
                   "Allow io_uring_enter in this container's seccomp profile");
  }
  const auto disabled = host.read_number("/proc/sys/kernel/io_uring_disabled");
  return found(fmt::format(
      "a ring works, with all {} operations{}", needed_operations.size(),
      disabled.value_or(0) == 0 ? "" : "; kernel.io_uring_disabled allows it to a few only"));
}

Finding probe_io_uring_deferred(const HostView& /*host*/) {
  Ring ring(IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN |
            IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL);
  if (ring.error() == 0 && ring.works()) return found("SINGLE_ISSUER and DEFER_TASKRUN work");
  return missing(fmt::format("no ring with DEFER_TASKRUN: {}",
                             ring.error() == 0 ? "it does not work" : std::strerror(ring.error())),
                 "completions interrupt the work of a keeper: fewer requests per second of CPU",
                 "Use Linux 6.1 or later");
}

}  // namespace berth::machine
