// SimLink: a connection between two simulated processes, and its two ends as Streams
// (async/stream.h). Bytes arrive in order, in pieces and after delays that the seed chooses; a
// write gets no further ahead of the reader than a window. Both loops share one time.
//
//   auto link = SimLink::make(client_loop, server_loop);
//   std::unique_ptr<Stream> client = link->take_first();
//   std::unique_ptr<Stream> server = link->take_second();
//   link->stall(std::chrono::seconds(2));
//   link->cut();
//
// Shutting down or destroying an end lets what it wrote arrive, then the other end reads 0; what
// the other end writes then fails with `disconnected`.
#pragma once

#include <array>
#include <cstddef>
#include <memory>

#include "async/stream.h"
#include "base/clock.h"

namespace berth {

class SimLoop;

struct SimLinkOptions {
  std::size_t window_bytes = 256 * 1024;
  Duration latency{};  // about this long from end to end; 0: chosen by seed
  bool fragments = true;
};

class SimLink : public std::enable_shared_from_this<SimLink> {
 public:
  static std::shared_ptr<SimLink> make(SimLoop& first, SimLoop& second,
                                       SimLinkOptions options = {});
  ~SimLink();
  SimLink(const SimLink&) = delete;
  SimLink& operator=(const SimLink&) = delete;

  /// Each once.
  std::unique_ptr<Stream> take_first();
  std::unique_ptr<Stream> take_second();

  /// A reset: both ends get `disconnected`, each after some of what was on its way to it.
  void cut();
  /// Nothing more arrives for so long (from now); a partition is a long stall.
  void stall(Duration duration);
  bool is_cut() const { return cut_; }

 private:
  friend class SimStream;
  struct Direction;
  SimLink(SimLoop& first, SimLoop& second, SimLinkOptions options);
  std::unique_ptr<Stream> take(std::size_t end);

  SimLinkOptions options_;
  bool cut_ = false;
  Instant stalled_until_{};
  std::array<std::unique_ptr<Direction>, 2> to_;  // the bytes on their way to each end
};

}  // namespace berth
