// qemu-guest-agent, behind the socket that QEMU serves for it.
//
// On one loop. Connects for each call, so that others (a watchdog, a person's tool) get a turn, and
// gets past what an earlier client left half done (guest-sync-delimited). After a freeze it stays
// connected until the thaw, for at most `hold`: an agent whose port nobody has connected
// sleeps in steps of 100 ms, and the guest would be frozen for so much longer.
// After a call that ran out of time it stays connected for the answer that may come still.
// One call at a time; others wait, and their time runs. No agent in the guest is `timed_out`, no
// QEMU `disconnected`; an agent that refuses is `precondition` with its words. What comes from the
// guest is bounded and never trusted: `protocol` and `limit` for what no agent says. Source: QEMU,
// docs/interop/qemu-ga-ref (qga/qapi-schema.json).
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "async/task.h"
#include "async/uring_loop.h"
#include "machine/control_protocol.h"
#include "machine/vm/agent_codec.h"
#include "machine/vm/guest_addresses.h"

namespace berth::machine {

constexpr Duration agent_hold_max = std::chrono::seconds(2);

class GuestAgent {
 public:
  GuestAgent(UringLoop& loop, std::string socket_path, Duration hold = agent_hold_max);
  GuestAgent(const GuestAgent&) = delete;
  GuestAgent& operator=(const GuestAgent&) = delete;
  /// After close() has ended.
  ~GuestAgent();

  /// The member `return` of its answer. A call that timed out may have been understood and carried
  /// out all the same, also later; the next one begins when the agent has come to its end.
  Task<Result<Json>> call(std::string command, Json arguments, Duration timeout);

  Task<Result<void>> ping(Duration timeout);
  /// guest-fsfreeze-freeze, which runs the guest's hook scripts first; how many file systems are
  /// frozen, 0 if none could be. A hook that fails is `precondition`, and nothing is frozen then;
  /// so is a guest that is frozen already. After any other error (it may be frozen, or become so):
  /// thaw.
  Task<Result<unsigned>> freeze(Duration timeout);
  /// How many it has thawed; 0 if nothing was frozen.
  Task<Result<unsigned>> thaw(Duration timeout);
  /// guest-fsfreeze-status: whether any is frozen.
  Task<Result<bool>> is_frozen(Duration timeout);
  /// Global addresses of all interfaces but loopback.
  Task<Result<std::vector<GuestAddress>>> addresses(Duration timeout);
  /// guest-set-time. An agent in a guest without hwclock has set it all the same when it fails.
  Task<Result<void>> set_time(std::chrono::system_clock::time_point time, Duration timeout);
  /// Asks the guest to power off ("powerdown") or to restart ("reboot"), and stays connected until
  /// QEMU has gone or `timeout` is over: an agent that has something to say when nobody is
  /// connected tries again without a pause and without end (QEMU 7.2, ga_channel_write_all), and
  /// the guest, as it shuts down, waits for its agent to end. Asked and silent is no error, nor is
  /// an agent that went with the guest.
  Task<Result<void>> shutdown(std::string mode, Duration timeout);

  /// Ends calls under way with `cancelled`, disconnects, and waits until nothing is left. Any time,
  /// more than once.
  Task<> close();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace berth::machine
