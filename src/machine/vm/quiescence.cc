#include "machine/vm/quiescence.h"

#include <algorithm>
#include <array>

#include <unistd.h>

#include <fmt/format.h>

#include "base/fault_point.h"
#include "base/log.h"
#include "machine/control_messages.h"
#include "machine/small_file.h"
#include "machine/vm/base64.h"
#include "machine/volume_directory.h"

namespace berth::machine {
namespace {

constexpr Duration agent_patience = std::chrono::seconds(2);  // to find out whether there is one
constexpr Duration question_patience = std::chrono::seconds(5);
constexpr Duration thaw_patience = std::chrono::seconds(10);
constexpr Duration poll_interval = std::chrono::milliseconds(20);
constexpr std::size_t hook_line_max = 512;  // bytes; what goes on is cut off

/// Run in the guest. The first line: why its agent calls no hooks; empty where it does. The agent
/// is the parent of what it runs, and has options and a file of them. A dispatcher (as Debian's)
/// with a directory of hooks says nothing by itself, and passes over files whose names are those of
/// backups. It also ends well where its hooks do not: their ends are in its log only. The second
/// line: how many have failed there in a freeze, empty without a dispatcher. The third: the last.
constexpr const char* hook_question = R"(
none() { printf '%s\n\n\n' "$1"; exit 0; }
words=$(tr '\0' '\n' </proc/$PPID/cmdline)
hook=$(printf '%s\n' "$words" | sed -n -e 's/^--fsfreeze-hook=//p' -e 's/^-F\(.\)/\1/p' | head -n 1)
[ -n "$hook" ] || { printf '%s\n' "$words" | grep -q -e '^-F$' -e '^--fsfreeze-hook$' &&
  hook=/etc/qemu/fsfreeze-hook; }
[ -n "$hook" ] || hook=$(sed -n 's/^fsfreeze-hook *= *//p' /etc/qemu/qemu-ga.conf 2>/dev/null)
[ -n "$hook" ] || none "the guest's agent runs without --fsfreeze-hook"
[ -x "$hook" ] || none "the guest has no hook $hook"
[ -d "$hook.d" ] && grep -q 'fsfreeze-hook.d' "$hook" || none ""
count=0
for script in "$hook.d"/*; do
  case $script in *~ | *.bak | *.orig | *.rpm* | *.sample | *.dpkg-*) continue ;; esac
  [ -x "$script" ] && [ -f "$script" ] && count=$((count + 1))
done
[ $count -gt 0 ] || none "the guest has no hooks in $hook.d"
log=$(sed -n 's/^LOGFILE=//p' "$hook")
echo
awk '/: execute .* (freeze|thaw)$/ { freezes = /freeze$/ }
  freezes && /: .* finished with status=[1-9]/ { ++count; last = $(NF - 3) " " $NF }
  END { print count + 0; print last }' "${log:-/dev/null}" 2>/dev/null || printf '0\n\n'
)";

/// Run in the guest where a hook has refused: every writable file system on a block device.
constexpr const char* freeze_script = R"(
count=0
for point in $(awk '$1 ~ "^/dev/" && $4 ~ /(^|,)rw(,|$)/ && !seen[$1]++ { print $2 }' /proc/mounts | sort -r); do
  fsfreeze -f "$point" 2>/dev/null && count=$((count + 1))
done
echo $count
)";

}  // namespace

std::string_view to_string(Consistency consistency) {
  switch (consistency) {
    case Consistency::crash: return "crash";
    case Consistency::filesystem: return "filesystem";
    case Consistency::application: return "application";
  }
  return "crash";
}

Result<Consistency> consistency_from_string(std::string_view name) {
  for (const Consistency each :
       {Consistency::crash, Consistency::filesystem, Consistency::application}) {
    if (to_string(each) == name) return each;
  }
  return failure(ErrorKind::invalid_argument, fmt::format("'{}' is no consistency", name));
}

Quiescence::Quiescence(UringLoop& loop, Machine& machine, std::string program)
    : loop_(loop), machine_(machine), program_(std::move(program)) {}

/// Lies where the next keeper finds it, for as long as the guest may be frozen.
std::string Quiescence::marker() const { return machine_.run_directory() + "/frozen"; }

/// What a script says in the guest; an error if it cannot be run there.
static Task<Result<std::string>> run_in_guest(UringLoop& loop, GuestAgent& agent,
                                              std::string script, Duration timeout) {
  const Instant deadline = loop.now() + timeout;
  const Json started = CO_TRY(co_await agent.call(
      "guest-exec",
      {{"path", "/bin/sh"}, {"arg", {"-c", std::move(script)}}, {"capture-output", true}},
      timeout));
  const std::uint64_t pid = CO_TRY(required_number_param(started, "pid"));
  while (loop.now() < deadline) {
    const Json status = CO_TRY(co_await agent.call("guest-exec-status", {{"pid", pid}}, timeout));
    if (CO_TRY(flag_param(status, "exited"))) {
      co_return decode_base64(CO_TRY(text_param(status, "out-data")));
    }
    co_await loop.sleep(poll_interval);
  }
  co_return failure(ErrorKind::timed_out, "a question to the guest was not answered in time");
}

Task<Result<Quiescence::HookAnswer>> Quiescence::ask_for_hooks() {
  const std::string text =
      CO_TRY(co_await run_in_guest(loop_, machine_.agent(), hook_question, question_patience));
  std::array<std::string, 3> lines;
  std::size_t at = 0;
  for (std::string& line : lines) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    line = text.substr(at, std::min(end - at, hook_line_max));
    at = std::min(end + 1, text.size());
  }
  co_return HookAnswer{
      .reason = std::move(lines[0]), .failures = std::move(lines[1]), .last = std::move(lines[2])};
}

/// What a dispatcher's hooks did in the freeze that is over; "" if they did it well.
Task<std::string> Quiescence::hook_failure() {
  const auto now = co_await ask_for_hooks();
  if (!now)
    co_return fmt::format("the guest does not say how its hooks ended: {}", now.error().message());
  if (now->failures == failures_before_) co_return std::string();
  co_return fmt::format("a hook of the guest's failed: {}", now->last);
}

Task<Result<unsigned>> Quiescence::freeze_without_hooks(Duration limit) {
  const std::string answer =
      CO_TRY(co_await run_in_guest(loop_, machine_.agent(), freeze_script, limit));
  unsigned count = 0;
  for (const char digit : answer) {
    if (digit < '0' || digit > '9' || count > 10'000) break;
    count = count * 10 + static_cast<unsigned>(digit - '0');
  }
  co_return count;
}

Task<Result<Quiet>> Quiescence::freeze(Duration limit) {
  if (is_frozen()) co_return failure(ErrorKind::precondition, "the guest is frozen already");
  CO_TRY(machine_.monitor());
  if (!machine_.record().specification.agent)
    co_return Quiet{.reason = "the machine is configured without a guest agent"};
  if (machine_.is_suspended()) co_return Quiet{.reason = "the machine is suspended"};
  if (!co_await machine_.has_agent()) co_return Quiet{.reason = "no guest agent runs"};
  if (const auto there = co_await machine_.agent().ping(agent_patience); !there)
    co_return Quiet{.reason = fmt::format("no guest agent answers: {}", there.error().message())};
  const auto hooks = co_await ask_for_hooks();

  CO_TRY(write_small_file(marker(), "\n"));
  fault_point("freezing.marked");
  watchdog_ = CO_TRY(FreezeWatchdog::start(program_, machine_.agent_socket(), limit));
  fault_point("freezing.watched");
  frozen_since_ = loop_.now();
  Quiet quiet;
  auto frozen = co_await machine_.agent().freeze(limit);
  if (frozen) {
    quiet.file_systems = *frozen;
    quiet.consistency =
        hooks && hooks->reason.empty() ? Consistency::application : Consistency::filesystem;
    if (!hooks) {
      quiet.reason =
          fmt::format("the guest does not say whether it has hooks: {}", hooks.error().message());
    } else {
      quiet.reason = hooks->reason;
    }
  } else {
    quiet.reason = fmt::format("the guest did not quiesce: {}", frozen.error().message());
    if (frozen.error().kind() == ErrorKind::precondition) {
      frozen_since_ = loop_.now();
      const auto without = co_await freeze_without_hooks(limit);
      quiet.file_systems = without.value_or(0);
      if (quiet.file_systems != 0) quiet.consistency = Consistency::filesystem;
    }
  }
  fault_point("freezing.frozen");
  held_since_ = loop_.now();
  file_systems_ = quiet.file_systems;
  failures_before_ =
      quiet.consistency == Consistency::application ? hooks->failures : std::string();
  if (quiet.file_systems == 0) {
    quiet.consistency = Consistency::crash;
    if (quiet.reason.empty()) quiet.reason = "the guest has no file system that it can freeze";
    CO_TRY(co_await thaw());
  }
  co_return quiet;
}

Task<Result<Quiescence::Thawed>> Quiescence::thaw() {
  if (!is_frozen()) co_return Thawed{};
  fault_point("freezing.held");
  const Instant thawing = loop_.now();
  auto thawed = co_await machine_.agent().thaw(thaw_patience);
  Thawed outcome{.frozen = loop_.now() - frozen_since_};
  if (!thawed) {
    watchdog_.reset();  // it goes on trying
    co_return failure(std::move(thawed).error().with_context("cannot thaw the guest"));
  }
  log_info("{} file systems frozen within {} us, held for {} us, thawed within {} us",
           file_systems_, to_microseconds(held_since_ - frozen_since_),
           to_microseconds(thawing - held_since_), to_microseconds(loop_.now() - thawing));
  fault_point("freezing.thawed");
  outcome.in_time = watchdog_->dismiss() || file_systems_ == 0;
  watchdog_.reset();
  fault_point("freezing.dismissed");
  ::unlink(marker().c_str());
  if (!failures_before_.empty()) outcome.hook_failure = co_await hook_failure();
  co_return outcome;
}

Task<> Quiescence::recover() {
  if (!path_exists(marker()) || !machine_.is_on()) co_return;
  if (const auto thawed = co_await machine_.agent().thaw(thaw_patience); !thawed)
    log_warning("the guest may be frozen: {}", thawed.error().message());
  ::unlink(marker().c_str());
}

}  // namespace berth::machine
