// ClientConnection: one connection of libnbd to an export, opened for reading. Used by one thread,
// the one of a ClientFile; nothing else touches libnbd.
//
// A connection that has failed stays so: every operation that was under way on it ends when it
// goes, without another word, and libnbd lets go of its memory. Errors are `disconnected`,
// `timed_out`, `cancelled` or libnbd's own.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/result.h"
#include "nbd/export.h"

struct nbd_handle;

namespace berth::nbd {

/// One operation; stays where it is until it is done or its connection has gone.
struct ClientOperation {
  bool done = false;
  int error = 0;                      // errno, once done
  std::vector<StatusExtent> extents;  // of a block status, from its offset on
};

class ClientConnection {
 public:
  /// Connects and completes the handshake, or gives up at `deadline`, or when `wakeup` (an eventfd)
  /// becomes readable and `interrupted(context)`, which reads it, says so. Resolving a name cannot
  /// be interrupted.
  struct Interrupt {
    int wakeup = -1;
    bool (*interrupted)(void* context) = nullptr;
    void* context = nullptr;
  };
  static Result<std::unique_ptr<ClientConnection>> connect(const std::string& uri, Instant deadline,
                                                           Interrupt interrupt);
  ~ClientConnection();
  ClientConnection(const ClientConnection&) = delete;
  ClientConnection& operator=(const ClientConnection&) = delete;

  std::uint64_t size() const { return size_; }
  std::uint32_t block_minimum() const { return block_minimum_; }
  std::uint32_t payload_max() const { return payload_max_; }
  bool knows_holes() const { return knows_holes_; }

  // Within the export, in multiples of block_minimum(), at most payload_max() bytes to read.
  Result<void> start_read(std::uint64_t offset, MutableBytes into, ClientOperation& operation);
  Result<void> start_status(std::uint64_t offset, std::uint64_t length, ClientOperation& operation);

  /// Waits until something has moved, `wakeup` is readable, or until the deadline; which does not
  /// matter. An error when the connection has failed.
  Result<void> wait(int wakeup, Instant deadline);

 private:
  struct Close {
    void operator()(nbd_handle* handle) const;
  };
  ClientConnection() = default;
  Result<void> prepare();
  Result<void> finish_handshake(Instant deadline, const Interrupt& interrupt);
  Result<void> learn();
  Result<void> expect_open() const;

  std::unique_ptr<nbd_handle, Close> handle_;
  std::uint64_t size_ = 0;
  std::uint32_t block_minimum_ = 1;
  std::uint32_t payload_max_ = 0;
  bool knows_holes_ = false;
};

}  // namespace berth::nbd
