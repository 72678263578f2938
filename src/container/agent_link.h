// The host's side of the conversation with a microVM's agent (docs/formats/container-agent.md),
// over the socket that QEMU serves for it.
//
// On one loop. Requests may overlap. When the connection ends, or what comes over it makes no sense
// any more, open and later requests end with `disconnected`, and closed() is called once: whoever
// wants to go on makes a new link, and asks the agent where things are (`list`).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "agent/session.h"
#include "async/event.h"
#include "async/gate.h"
#include "async/stream.h"
#include "async/uring_loop.h"
#include "base/result.h"

namespace berth::container {

constexpr std::size_t agent_requests_max = 256;  // without an answer so far

/// What the agent has said of its guest when it was greeted.
struct AgentWelcome {
  std::string kernel;
  std::string boot_id;
  std::string boot_error;  // why the guest is not in its image; ""
};

class AgentAnswer {
 public:
  /// `protocol` for what is no answer.
  static Result<AgentAnswer> decode(Bytes payload);
  const agent::Fields& fields() const { return fields_; }

 private:
  std::vector<std::byte> bytes_;  // that fields_ looks at
  agent::Fields fields_;
};

class AgentLink {
 public:
  struct Handlers {
    /// On the loop, in order; must not block.
    std::function<void(agent::EventKind, std::uint32_t channel, const agent::Fields&)> event;
    std::function<void()> closed;
  };

  /// Connects, and waits for the agent's greeting, which comes when the guest has booted.
  /// `disconnected` if nobody listens, `timed_out` after `patience`, `unsupported` for an agent of
  /// another version. Of an agent that was `in_step` when it was last spoken to, a template's, a
  /// short greeting is tried first.
  static Task<Result<std::unique_ptr<AgentLink>>> connect(UringLoop& loop, std::string socket_path,
                                                          Duration patience, Handlers handlers,
                                                          bool in_step = false);
  /// The same in two steps, for a guest that stands still: it is dialled before it goes on. A QEMU
  /// whose last client has gone while its guest stood takes what the guest says before there is
  /// another one for something that will go later, and then nothing goes any more.
  static Task<Result<std::unique_ptr<berth::Stream>>> dial(UringLoop& loop,
                                                           std::string socket_path);
  static Task<Result<std::unique_ptr<AgentLink>>> connect(UringLoop& loop,
                                                          std::unique_ptr<berth::Stream> stream,
                                                          Duration patience, Handlers handlers,
                                                          bool in_step = false);
  AgentLink(const AgentLink&) = delete;
  AgentLink& operator=(const AgentLink&) = delete;
  /// After close() has ended.
  ~AgentLink();

  const AgentWelcome& welcome() const { return welcome_; }
  bool is_open() const { return is_open_; }

  /// The agent's own errors have its kinds; `timed_out` if no answer came in time: the request may
  /// be carried out still. `limit` where agent_requests_max have no answer.
  Task<Result<AgentAnswer>> request(agent::FieldWriter request, Duration timeout);
  /// The same, but what the agent refuses is an answer too, for its other fields.
  Task<Result<AgentAnswer>> ask(agent::FieldWriter request, Duration timeout);

  /// A stream that the caller fills and empties; `changed` is called when something is new about
  /// it, and once when the link is over. `limit` where there are too many.
  Result<agent::Stream*> open_stream(std::uint32_t number, std::function<void()> changed);
  /// The same, both ways, to a port of the guest's loopback. Where it fails the stream may be there
  /// nevertheless: close_stream().
  Task<Result<void>> connect_stream(std::uint32_t number, std::uint64_t port,
                                    std::function<void()> changed, Duration timeout);
  /// Of one whose other end may not be done with it: the agent is told.
  Task<> abandon_stream(std::uint32_t number, Duration timeout);
  /// Null where it is not there.
  agent::Stream* stream(std::uint32_t number) { return session_.find(number); }
  void close_stream(std::uint32_t number);
  /// After a stream was filled, emptied, finished or stopped.
  void wake() { output_.notify_all(); }

  /// Nothing goes to the guest from now on until release(): what comes up meanwhile waits. Returns
  /// when the agent has read what went before, and nothing is on its way; where it does not say so
  /// in time (`timed_out`) nothing more goes all the same, but something may be on its way.
  Task<Result<void>> hold(Duration patience);
  void release();
  /// Held, and nothing is on its way.
  bool is_quiet() const { return is_quiet_; }
  /// Bytes that have come from the guest.
  std::uint64_t received() const { return received_; }

  /// Disconnects. Waits until nothing of the link is under way. Any time, more than once.
  Task<> close();

 private:
  struct Waiting;

  AgentLink(UringLoop& loop, std::unique_ptr<berth::Stream> stream, Handlers handlers);
  Task<Result<void>> greet(Duration patience, bool in_step);
  Task<> await_greeting(Duration patience);
  Task<> read();
  Task<> write();
  void take(const agent::Message& message);
  void greeted(const agent::Message& message);
  void end(Error reason);
  Task<Result<void>> released(Duration patience);
  Task<Result<AgentAnswer>> send(agent::FieldWriter request, Duration timeout);

  UringLoop& loop_;
  std::unique_ptr<berth::Stream> stream_;
  Handlers handlers_;
  agent::Session session_{agent::Session::Role::host};
  AgentWelcome welcome_;
  std::map<std::uint32_t, Waiting*> waiting_;
  std::map<std::uint32_t, std::function<void()>> watchers_;
  Event output_;
  Event greeted_;
  Gate tasks_;
  std::uint64_t received_ = 0;
  bool is_held_ = false;
  bool is_quiet_ = false;
  bool is_open_ = false;
  bool is_over_ = false;
  Error why_over_{ErrorKind::disconnected, "the agent is not connected"};
};

}  // namespace berth::container
