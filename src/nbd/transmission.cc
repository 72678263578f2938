#include "nbd/transmission.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

namespace berth::nbd {
namespace {

// Larger payloads are received straight into their own memory, past the receive buffer.
constexpr std::size_t payload_copied_max = 64 * KiB;
// After a large payload the next one is likely to be large too: take in little more than its
// header.
constexpr std::size_t receive_max_between_large = 4 * KiB;
constexpr std::size_t failures_logged_max = 10;  // of one connection

}  // namespace

Transmission::Transmission(Loop& loop, Stream& stream, Export& served, BufferPool& pool,
                           Session session, std::vector<std::string> contexts, Limits limits)
    : loop_(loop),
      stream_(stream),
      export_(served),
      pool_(pool),
      session_(session),
      contexts_(std::move(contexts)),
      limits_(limits),
      room_made_(loop),
      receive_max_(payload_length_max),
      gate_(loop) {}

Transmission::~Transmission() { gate_.abandon(); }

Task<Result<void>> Transmission::run(ReceiveBuffer& received) {
  Result<void> outcome = co_await receive_requests(received);
  co_await gate_.drained();
  co_return outcome;
}

void Transmission::drain() {
  draining_ = true;
  room_made_.notify_all();
  end_if_drained();
}

void Transmission::end_if_drained() {
  if (draining_ && requests_in_flight_ == (receiving_payload_ ? 1 : 0)) stream_.shutdown();
}

/// NBD: Request message; Terminating the transmission phase.
Task<Result<void>> Transmission::receive_requests(ReceiveBuffer& input) {
  while (true) {
    while (input.size() < request_size) {
      Result<bool> more = co_await receive_more(input);
      if (draining_) co_return Result<void>{};
      if (!CO_TRY(std::move(more))) {
        if (input.size() == 0) co_return Result<void>{};  // it left between two requests
        co_return failure(ErrorKind::disconnected, "the client left in the middle of a request");
      }
    }
    const Request request =
        CO_TRY(parse_request(std::span<const std::byte, request_size>(input.data(), request_size)));
    input.consume(request_size);
    if (request.type == Command::disconnect) co_return Result<void>{};

    const std::uint32_t cost = cost_of(request);
    while (!has_room_for(cost) && !draining_) co_await room_made_.wait();
    if (draining_) co_return Result<void>{};
    ++requests_in_flight_;
    bytes_in_flight_ += cost;

    if (const Refusal refusal = check_request(request, session_)) {
      if (request.type == Command::write) {
        receiving_payload_ = true;
        const Result<void> skipped = co_await skip_payload(input, request.length);
        receiving_payload_ = false;
        if (!skipped) {
          request_ended(cost);
          co_return draining_ ? Result<void>{} : skipped;
        }
      }
      reply_error(request, refusal.error, refusal.reason);
    } else if (request.type == Command::write) {
      BufferPool::Buffer payload = pool_.take(request.length);
      if (input.size() >= request.length) {
        std::ranges::copy(input.unread().first(request.length), payload.bytes().data());
        input.consume(request.length);
        receive_max_ = payload_length_max;
      } else {
        receiving_payload_ = true;
        const Result<void> received = co_await receive_payload(input, payload.bytes());
        receiving_payload_ = false;
        if (!received || draining_) {
          request_ended(cost);
          co_return draining_ ? Result<void>{} : received;
        }
      }
      gate_.spawn(serve_write(request, std::move(payload)));
    } else {
      start(request);
    }
  }
}

/// False at the end of the stream.
Task<Result<bool>> Transmission::receive_more(ReceiveBuffer& input) {
  const std::size_t got = CO_TRY(co_await stream_.read_some(input.room(receive_max_)));
  input.received(got);
  co_return got != 0;
}

Task<Result<void>> Transmission::receive_payload(ReceiveBuffer& input, MutableBytes into) {
  if (into.size() <= payload_copied_max) {
    // What follows comes with the rest of this payload: fewer calls for a copy of a few pages.
    receive_max_ = payload_length_max;
    while (input.size() < into.size()) {
      if (!CO_TRY(co_await receive_more(input))) {
        co_return failure(ErrorKind::disconnected, "the client left in the middle of a payload");
      }
    }
    std::ranges::copy(input.unread().first(into.size()), into.data());
    input.consume(into.size());
    co_return Result<void>{};
  }
  receive_max_ = receive_max_between_large;
  const std::size_t first = input.size();
  std::ranges::copy(input.unread(), into.data());
  input.consume(first);
  co_return co_await stream_.read_exactly(into.subspan(first));
}

Task<Result<void>> Transmission::skip_payload(ReceiveBuffer& input, std::size_t length) {
  if (length > payload_length_skipped_max) {
    co_return failure(ErrorKind::protocol, fmt::format("a write of {} bytes", length));
  }
  while (true) {
    const std::size_t skipped = std::min(length, input.size());
    input.consume(skipped);
    length -= skipped;
    if (length == 0) co_return Result<void>{};
    if (!CO_TRY(co_await receive_more(input))) {
      co_return failure(ErrorKind::disconnected, "the client left in the middle of a payload");
    }
  }
}

void Transmission::start(const Request& request) {
  switch (request.type) {
    case Command::read: return gate_.spawn(serve_read(request, pool_.take(request.length)));
    case Command::block_status: return gate_.spawn(serve_block_status(request));
    default: return gate_.spawn(serve_action(request));
  }
}

std::uint32_t Transmission::cost_of(const Request& request) const {
  std::size_t bytes = 0;
  if (request.type == Command::read || request.type == Command::write) {
    bytes = std::min<std::size_t>(request.length, payload_length_max);
  } else if (request.type == Command::block_status) {
    bytes = session_.context_count * block_status_size(status_extents_max);
  }
  return static_cast<std::uint32_t>(bytes);
}

bool Transmission::has_room_for(std::uint32_t cost) const {
  if (requests_in_flight_ == 0) return true;
  return requests_in_flight_ < limits_.requests_in_flight_max &&
         bytes_in_flight_ + cost <= limits_.bytes_in_flight_max;
}

void Transmission::request_ended(std::uint32_t cost) {
  --requests_in_flight_;
  bytes_in_flight_ -= cost;
  if (room_made_.has_waiters()) room_made_.notify_all();
  end_if_drained();
}

/// NBD: Request types, NBD_CMD_READ.
Task<> Transmission::serve_read(Request request, BufferPool::Buffer into) {
  if (request.length == 0) {
    reply_success(request);
    co_return;
  }
  const Result<void> done = co_await export_.read(request.offset, into.bytes());
  if (!done) {
    reply_failure(request, done.error());
    co_return;
  }
  reply_data(request, std::move(into));
}

/// NBD: Request types, NBD_CMD_WRITE.
Task<> Transmission::serve_write(Request request, BufferPool::Buffer from) {
  if (request.length != 0) {
    const Result<void> done =
        co_await export_.write(request.offset, from.bytes(), request.has(command_flag_fua));
    if (!done) {
      reply_failure(request, done.error());
      co_return;
    }
  }
  reply_success(request);
}

Task<> Transmission::serve_action(Request request) {
  const Result<void> done = co_await act(request);
  if (!done) {
    reply_failure(request, done.error());
    co_return;
  }
  reply_success(request);
}

/// NBD: Request types, NBD_CMD_FLUSH, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES.
Task<Result<void>> Transmission::act(const Request& request) {
  const bool force_unit_access = request.has(command_flag_fua);
  if (request.type == Command::flush) co_return co_await export_.flush();
  if (request.length == 0) co_return Result<void>{};
  if (request.type == Command::trim) {
    co_return co_await export_.discard(request.offset, request.length, force_unit_access);
  }
  const ZeroOptions options{.keep_allocated = request.has(command_flag_no_hole),
                            .fast_only = request.has(command_flag_fast_zero),
                            .force_unit_access = force_unit_access};
  co_return co_await export_.zero(request.offset, request.length, options);
}

/// NBD: Request types, NBD_CMD_BLOCK_STATUS: one chunk for each context.
Task<> Transmission::serve_block_status(Request request) {
  const std::size_t extents_max = request.has(command_flag_req_one) ? 1 : status_extents_max;
  for (std::size_t id = 0; id < contexts_.size(); ++id) {
    const Result<std::vector<StatusExtent>> extents =
        co_await export_.block_status(contexts_[id], request.offset, request.length, extents_max);
    if (!extents) {
      reply_failure(request, extents.error());
      co_return;
    }
    const std::span<const StatusExtent> listed =
        std::span(*extents).first(std::min(extents->size(), extents_max));
    const bool last = id + 1 == contexts_.size();
    Reply reply;
    reply.payload = pool_.take(block_status_size(listed.size()));
    reply.payload_size = static_cast<std::uint32_t>(
        encode_block_status(reply.payload.bytes(), request.cookie, last ? Chunk::done : Chunk::more,
                            static_cast<std::uint32_t>(id), listed, request.length));
    if (reply.payload_size == 0) {
      reply_error(request, WireError::io, "the export does not know its status");
      co_return;
    }
    reply.ends_request = last;
    reply.cost = cost_of(request);
    send(std::move(reply));
  }
}

/// NBD: Simple reply message. It may answer anything but a read where structured replies were
/// negotiated, and is the shorter one.
void Transmission::reply_success(const Request& request) {
  Reply reply;
  const bool structured = request.type == Command::read && session_.structured_replies;
  reply.header_size = static_cast<std::uint32_t>(
      structured ? encode_none(reply.header, request.cookie)
                 : encode_simple_reply(reply.header, request.cookie, WireError::none));
  reply.cost = cost_of(request);
  send(std::move(reply));
}

void Transmission::reply_data(const Request& request, BufferPool::Buffer data) {
  Reply reply;
  reply.cost = cost_of(request);
  if (!session_.structured_replies) {
    reply.header_size = static_cast<std::uint32_t>(
        encode_simple_reply(reply.header, request.cookie, WireError::none));
  } else if (is_zero(data.bytes())) {  // finds out at once where it is not, and saves the socket
                                       // the copies
    reply.header_size = static_cast<std::uint32_t>(encode_offset_hole(
        reply.header, request.cookie, Chunk::done, request.offset, request.length));
    return send(std::move(reply));
  } else {
    reply.header_size = static_cast<std::uint32_t>(encode_offset_data(
        reply.header, request.cookie, Chunk::done, request.offset, request.length));
  }
  reply.payload = std::move(data);
  reply.payload_size = request.length;
  send(std::move(reply));
}

void Transmission::reply_failure(const Request& request, const Error& error) {
  const WireError code = wire_error(error.kind(), request);
  const bool serious =
      code == WireError::io || code == WireError::no_space;  // the others are the client's own
  if (serious && failures_logged_ < failures_logged_max) {
    ++failures_logged_;
    spdlog::warn("nbd: export '{}': command {} at {}, {} bytes, for {}: {}", export_.info().name,
                 static_cast<unsigned>(request.type), request.offset, request.length,
                 stream_.peer(), error.message());
  }
  reply_error(request, code, error.message());
}

/// NBD: Error values; Structured reply types, NBD_REPLY_TYPE_ERROR.
void Transmission::reply_error(const Request& request, WireError error, std::string_view message) {
  Reply reply;
  reply.cost = cost_of(request);
  if (session_.structured_replies) {
    reply.payload = pool_.take(error_chunk_size_max);
    reply.payload_size = static_cast<std::uint32_t>(
        encode_error(reply.payload.bytes(), request.cookie, Chunk::done, error, message));
  } else {
    reply.header_size =
        static_cast<std::uint32_t>(encode_simple_reply(reply.header, request.cookie, error));
  }
  send(std::move(reply));
}

void Transmission::send(Reply reply) {
  ready_.push_back(std::move(reply));
  if (!sending_) gate_.spawn(send_replies());
}

Task<> Transmission::send_replies() {
  sending_ = true;
  // Replies without a payload go together: those of all requests that have ended by now, with one
  // call.
  if (ready_.back().payload_size == 0) co_await loop_.yield();
  while (!ready_.empty()) {
    std::swap(ready_, being_sent_);
    parts_.clear();
    for (const Reply& reply : being_sent_) {
      if (reply.header_size != 0) parts_.emplace_back(reply.header.data(), reply.header_size);
      if (reply.payload_size != 0)
        parts_.emplace_back(reply.payload.bytes().first(reply.payload_size));
    }
    if (!broken_) {
      const Result<void> sent = co_await stream_.write_all(parts_);
      if (!sent) {
        broken_ = true;
        stream_.shutdown();  // so that receiving ends, too
      }
    }
    for (const Reply& reply : being_sent_) {
      if (reply.ends_request) request_ended(reply.cost);
    }
    being_sent_.clear();
  }
  sending_ = false;
}

}  // namespace berth::nbd
