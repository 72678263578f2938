// The transmission phase of one connection: requests are started as they arrive, and each is
// answered the moment it is done (NBD: Transmission).
//
//   receive_requests()   one coroutine: takes requests off the stream, starts each, waits when
//   there are too many serve_…()            one coroutine for each request in flight: the export's
//   work, then its reply is queued send_replies()       one coroutine while there are replies to
//   send: all that are ready go with one write
//
// Owned by a Connection, on its loop. Stream, export and pool outlive it. Payloads are never copied
// but for small writes, from the receive buffer into page-aligned memory.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "async/event.h"
#include "async/gate.h"
#include "async/stream.h"
#include "nbd/buffer_pool.h"
#include "nbd/codec.h"
#include "nbd/export.h"
#include "nbd/receive_buffer.h"

namespace berth::nbd {

/// What one client may have under way. When it is reached, no more of its requests are received.
struct Limits {
  std::size_t requests_in_flight_max = 256;
  std::size_t bytes_in_flight_max = 2 * payload_length_max;  // one request is always let in
};

class Transmission {
 public:
  Transmission(Loop& loop, Stream& stream, Export& served, BufferPool& pool, Session session,
               std::vector<std::string> contexts, Limits limits);
  Transmission(const Transmission&) = delete;
  Transmission& operator=(const Transmission&) = delete;
  /// After run() has ended; or at any time in a simulated process death.
  ~Transmission();

  /// Until the client has left, drain() has been obeyed, or (an error) the client broke the
  /// protocol or the connection broke. Every request has ended then. `received`: what came before;
  /// outlives it.
  Task<Result<void>> run(ReceiveBuffer& received);

  /// Starts no more requests, and ends the connection once those under way have been answered. The
  /// others get no answer at all: a client that reconnects sends them again, where an error would
  /// reach its user.
  void drain();

 private:
  struct Reply {
    std::array<std::byte, reply_header_size_max> header;
    std::uint32_t header_size = 0;
    std::uint32_t cost = 0;  // bytes that the request counts for; 0 where more replies follow
    bool ends_request = true;
    BufferPool::Buffer payload;
    std::uint32_t payload_size = 0;
  };

  Task<Result<void>> receive_requests(ReceiveBuffer& input);
  Task<Result<bool>> receive_more(ReceiveBuffer& input);
  Task<Result<void>> receive_payload(ReceiveBuffer& input, MutableBytes into);
  Task<Result<void>> skip_payload(ReceiveBuffer& input, std::size_t length);
  void start(const Request& request);

  std::uint32_t cost_of(const Request& request) const;
  bool has_room_for(std::uint32_t cost) const;
  void request_ended(std::uint32_t cost);

  Task<> serve_read(Request request, BufferPool::Buffer into);
  Task<> serve_write(Request request, BufferPool::Buffer from);
  Task<> serve_action(Request request);
  Task<> serve_block_status(Request request);
  Task<Result<void>> act(const Request& request);

  void reply_success(const Request& request);
  void reply_data(const Request& request, BufferPool::Buffer data);
  void reply_failure(const Request& request, const Error& error);
  void reply_error(const Request& request, WireError error, std::string_view message);
  void send(Reply reply);
  Task<> send_replies();
  void end_if_drained();

  Loop& loop_;
  Stream& stream_;
  Export& export_;
  BufferPool& pool_;
  const Session session_;
  const std::vector<std::string> contexts_;
  const Limits limits_;

  std::size_t requests_in_flight_ = 0;
  std::size_t bytes_in_flight_ = 0;
  Event room_made_;
  bool draining_ = false;
  bool receiving_payload_ = false;  // of a request that counts as in flight already
  std::size_t receive_max_;         // bytes of the next receive
  std::size_t failures_logged_ = 0;

  std::vector<Reply> ready_;
  std::vector<Reply> being_sent_;
  std::vector<Bytes> parts_;
  bool sending_ = false;
  bool broken_ = false;  // replies reach nobody any more

  Gate gate_;
};

}  // namespace berth::nbd
