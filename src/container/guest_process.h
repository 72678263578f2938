// One process in a container's guest, as the host sees it: its start, its streams, its end.
//
// On one loop. Its streams are filled and emptied by whoever owns it, who
// waits for changed() meanwhile.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "async/event.h"
#include "container/agent_link.h"

namespace berth::container {

struct ProcessSpecification {
  std::vector<std::string> arguments;    // at least one
  std::vector<std::string> environment;  // "NAME=value"
  std::string working_directory;         // "" for /
  std::string user;                      // "" for root
  bool terminal = false;
  bool input = false;
  bool is_main = false;
  std::uint16_t rows = 24;  // of a terminal
  std::uint16_t columns = 80;
};

struct ProcessEnd {
  unsigned exit_code = 0;  // as a shell has it
  unsigned signal = 0;     // 0: it ended by itself
};

/// Of one of the fields `exit_code` and `exit_signal`; nothing for another one.
std::optional<ProcessEnd> decode_end(const agent::Field& field);
/// Of an event; nothing if it runs.
std::optional<ProcessEnd> decode_end(const agent::Fields& fields);

class GuestProcess {
 public:
  /// Where its streams go on, in a guest that has known an earlier keeper.
  struct Positions {
    std::uint64_t output = 0;
    std::uint64_t errors = 0;
    std::uint64_t input = 0;
    std::uint64_t input_limit = agent::stream_window;
  };

  GuestProcess(UringLoop& loop, std::shared_ptr<AgentLink> link, std::uint32_t number,
               ProcessSpecification specification);
  GuestProcess(const GuestProcess&) = delete;
  GuestProcess& operator=(const GuestProcess&) = delete;
  ~GuestProcess();

  /// Once. Where it cannot be started, `shell_status` says what a shell would end with (125 to
  /// 127).
  Task<Result<void>> start();
  unsigned shell_status() const { return shell_status_; }
  /// In place of start(): it runs, or has ended, already.
  Result<void> go_on(const Positions& positions);

  std::uint32_t number() const { return number_; }
  const ProcessSpecification& specification() const { return specification_; }
  /// Null where there is none: a terminal has no errors.
  agent::IncomingStream* output();
  agent::IncomingStream* errors();
  agent::OutgoingStream* input();
  /// After one of them was filled or emptied.
  void wake() { link_->wake(); }

  /// What its events say.
  void set_end(ProcessEnd end);
  const std::optional<ProcessEnd>& end() const { return end_; }
  /// It has ended, and everything that it wrote was taken.
  bool is_over();
  /// Its streams have come to their end.
  bool is_silent();
  /// The link to its guest is over.
  bool is_lost() const { return !link_->is_open(); }
  auto changed() { return changed_.wait(); }
  /// Has those who wait for it look again.
  void wake_up() { changed_.notify_all(); }

  Task<Result<void>> signal(unsigned number);
  Task<Result<void>> resize(std::uint16_t rows, std::uint16_t columns);
  /// Of one that has ended: the agent forgets it.
  Task<> forget();

 private:
  Result<void> open_streams(const Positions& positions);
  agent::Stream* stream(std::uint32_t which);

  const std::shared_ptr<AgentLink> link_;
  const std::uint32_t number_;
  const ProcessSpecification specification_;
  Event changed_;
  std::vector<std::uint32_t> streams_;
  std::optional<ProcessEnd> end_;
  unsigned shell_status_ = 0;
};

}  // namespace berth::container
