// Stream: an ordered byte connection (a socket, or TLS over one). The seam to the network.
//
// At most one read and one write are under way at a time; both may be, together. Errors are
// `disconnected` when the peer went away, else io_error or protocol (TLS). Used on its loop only.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "async/task.h"
#include "base/bytes.h"
#include "base/result.h"

namespace berth {

class Stream {
 public:
  virtual ~Stream() = default;

  /// At least one byte into `into`, as many as are there; 0 at the end of the stream.
  virtual Task<Result<std::size_t>> read_some(MutableBytes into) = 0;
  /// All bytes of all parts, in order. The memory stays the caller's until it ends.
  virtual Task<Result<void>> write_all(std::span<const Bytes> parts) = 0;
  /// The peer reads the end of the stream after all that was written; reading goes on. Write
  /// nothing after it.
  virtual Task<Result<void>> finish_writing();
  /// Ends both directions: a pending read or write ends with `disconnected`. Any time, more than
  /// once.
  virtual void shutdown() = 0;
  /// For messages and logs ("unix", "127.0.0.1:40112").
  virtual const std::string& peer() const = 0;

  /// Exactly `into.size()` bytes; `disconnected` if the stream ends before.
  Task<Result<void>> read_exactly(MutableBytes into);
};

class Listener {
 public:
  virtual ~Listener() = default;
  virtual Task<Result<std::unique_ptr<Stream>>> accept() = 0;
  /// Ends a pending accept with `cancelled`.
  virtual void close() = 0;
};

}  // namespace berth
