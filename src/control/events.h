// What happens on this host, for everybody who listens: a short memory, and any number of
// followers.
//
// On the control plane's thread. A follower that is slower than the memory is long misses events;
// it sees a gap in the sequence.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "control/async.h"

namespace berth::control {

/// A source of lines for a streamed answer. One reader; close() may come at any time.
class LineSource {
 public:
  virtual ~LineSource() = default;
  /// The next line, without its newline; nothing when the stream has ended.
  virtual Async<std::optional<std::string>> next() = 0;
  /// Ends the stream for whoever waits in next().
  virtual void close() = 0;
};

struct EventSubject {
  std::string volume = {};  // "" for none
  std::string job = {};
  std::string machine = {};
  std::string container = {};
};

class EventLog {
 public:
  explicit EventLog(Executor executor);
  ~EventLog();

  void publish(std::string_view kind, EventSubject subject, std::string message);
  /// From the event after number `since` on; from now on without it. Ends when the log goes.
  std::unique_ptr<LineSource> follow(std::optional<std::uint64_t> since);
  /// The youngest event's number, 0 before the first.
  std::uint64_t last() const;
  /// Ends all followers, for good.
  void close();

  struct State;  // shared with the followers

 private:
  std::shared_ptr<State> state_;
};

}  // namespace berth::control
