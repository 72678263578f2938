// What both sides of the port keep of their conversation: where they are in the byte stream, the
// streams, and what has to go next. No I/O; whoever owns it moves the bytes.
//
//   session.receive(bytes_that_came);
//   while (auto message = session.next()) …
//   session.fill_output(); write(session.output()); session.mark_written(count);
//
// Requests, answers and events go first; then credits; then one piece of data of each stream in
// turn, so none waits for another that is slow. Output is made when there is room on the wire,
// never before: what is kept is bounded by the streams' own limits and the backlog, which the owner
// keeps low by not calling next() and receive() while it is over control_backlog_max.
//
// Single-threaded. Bytes from the other side may hold anything: what makes no sense is dropped and
// counted.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "agent/fields.h"
#include "agent/frame.h"
#include "agent/stream.h"

namespace berth::agent {

struct Stream {
  std::optional<OutgoingStream> out;
  std::optional<IncomingStream> in;
};

struct Message {
  enum class Kind : std::uint8_t {
    greeted,  // agent: there is a new host; host: the agent's welcome, with fields
    request,
    answer,
    event,
    stream,  // something is new about the stream `channel`: bytes, their end, room, a stop
  };
  Kind kind{};
  std::uint32_t channel = 0;
  std::uint16_t head = 0;  // a request's Operation, an event's EventKind
  Bytes fields;            // valid until the next call of receive() or next()
};

class Session {
 public:
  enum class Role : std::uint8_t { agent, host };
  explicit Session(Role role)
      : role_(role), decoder_(role == Role::agent ? FrameType::hello : FrameType::welcome) {}

  /// Host: begins a connection, with a token that nobody can guess. Streams stay; what they have
  /// to be told is asked of the agent (`list`) and given to open_outgoing() and open_incoming().
  void greet(std::uint64_t token);
  /// The same, of an agent that has last been left between two frames.
  void greet_in_step(std::uint64_t token);
  /// Agent: the fields that a welcome has, from now on.
  void set_welcome(std::vector<std::byte> fields) { welcome_ = std::move(fields); }
  /// The other side is gone. Nothing is made for it until there is a greeting.
  void disconnect();
  bool is_greeted() const { return is_greeted_; }
  /// Host: what came is no frame, and it has to greet again.
  bool is_lost() const { return is_greeted_ && !decoder_.is_synchronized(); }
  const Greeting& peer() const { return peer_; }

  void receive(Bytes bytes) { decoder_.append(bytes); }
  std::optional<Message> next();
  /// Frames that made no sense, and bytes that were no frames.
  std::uint64_t refused() const { return refused_ + decoder_.dropped(); }

  /// Host: its number, which the answer has as its channel. `limit` where it is too long.
  Result<std::uint32_t> request(const FieldWriter& request);
  void answer(std::uint32_t request, const FieldWriter& fields);
  void event(std::uint32_t channel, const FieldWriter& fields);

  /// Null if it is not there; valid until it is closed.
  Stream* find(std::uint32_t stream);
  /// Null where there are streams_max already.
  Stream* open(std::uint32_t stream);
  void close(std::uint32_t stream) { streams_.erase(stream); }

  /// Makes frames until there are output_target bytes, or nothing to send.
  void fill_output();
  /// The same of requests, answers and events alone.
  void fill_control();
  Bytes output() const { return output_.view(); }
  void mark_written(std::size_t bytes) { output_.drop(bytes); }
  /// Bytes of requests, answers and events that have not gone.
  std::size_t backlog() const { return control_.size(); }

 private:
  void begin(std::uint64_t token);
  std::optional<Message> take(const Frame& frame);
  std::optional<Message> take_stream_frame(const Frame& frame);
  std::optional<Message> take_headed(Message::Kind kind, const Frame& frame);
  void take_greeting(const Frame& frame);
  std::optional<Message> refuse();
  void append_credits();
  bool append_data();

  Role role_;
  FrameDecoder decoder_;
  bool is_greeted_ = false;
  Greeting peer_;
  std::vector<std::byte> welcome_;
  std::uint32_t last_request_ = 0;
  std::map<std::uint32_t, Stream> streams_;
  std::uint32_t turn_ = 0;  // the stream that sent last
  ByteQueue control_;
  ByteQueue output_;
  std::uint64_t refused_ = 0;
};

}  // namespace berth::agent
