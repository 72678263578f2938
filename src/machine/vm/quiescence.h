// A guest at rest for the instant of a checkpoint: its applications told, its file systems frozen;
// and what may be claimed about it afterwards.
//
//   thawed ──freeze──► frozen ──thaw, limit over, keeper dies──► thawed
//
// A watchdog of its own thaws the guest when the limit is over or when the keeper dies
// (freeze_watchdog.h). On the machine's loop.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "machine/vm/freeze_watchdog.h"
#include "machine/vm/machine.h"

namespace berth::machine {

constexpr Duration freeze_limit_default = std::chrono::seconds(10);
constexpr Duration freeze_limit_max = std::chrono::seconds(60);

/// What a checkpoint made now is (DESIGN §2). Never more than what really happened.
enum class Consistency : std::uint8_t {
  crash,       // nothing was frozen
  filesystem,  // file systems frozen
  application  // and the guest's hooks said that its applications are at rest
};
std::string_view to_string(Consistency consistency);
Result<Consistency> consistency_from_string(std::string_view name);

struct Quiet {
  Consistency consistency = Consistency::crash;
  unsigned file_systems = 0;  // that are frozen
  std::string reason;         // why it is not more; "" where it is `application`
};

class Quiescence {
 public:
  /// `program` is this very program, for the watchdog.
  Quiescence(UringLoop& loop, Machine& machine, std::string program);

  /// As far as the guest goes along: a guest without an agent is `crash`, and no error.
  /// precondition while it is frozen already.
  Task<Result<Quiet>> freeze(Duration limit);

  struct Thawed {
    Duration frozen{};  // from the first file system's freeze to the thaw
    bool in_time =
        true;  // false: the watchdog may have been there first, so nothing may be claimed
    std::string hook_failure;  // known only now: `application` may not be claimed. "" if none
  };
  /// Also when nothing is frozen.
  Task<Result<Thawed>> thaw();

  bool is_frozen() const { return watchdog_.has_value(); }
  /// A guest that an earlier keeper has left frozen is thawed.
  Task<> recover();

 private:
  std::string marker() const;
  /// `reason`: why a freeze that succeeds says nothing about applications, "" if it does.
  /// `failures`: how many hooks of a dispatcher have ever failed, "" without one; `last` of them.
  struct HookAnswer {
    std::string reason, failures, last;
  };
  Task<Result<HookAnswer>> ask_for_hooks();
  Task<std::string> hook_failure();
  Task<Result<unsigned>> freeze_without_hooks(Duration limit);

  UringLoop& loop_;
  Machine& machine_;
  const std::string program_;
  std::optional<FreezeWatchdog> watchdog_;
  Instant frozen_since_{};
  Instant held_since_{};  // by us: the guest has answered that it is frozen
  unsigned file_systems_ = 0;
  std::string failures_before_;  // of a dispatcher's hooks, where `application` hangs on them
};

}  // namespace berth::machine
