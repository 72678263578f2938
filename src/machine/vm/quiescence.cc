#include "machine/vm/quiescence.h"

#include <algorithm>

#include <unistd.h>

#include <fmt/format.h>

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

/// Run in the guest: whether its agent calls hooks, and whether there is one to call. The agent is
/// the parent of what it runs. A dispatcher (as Debian's) with a directory of hooks says nothing by
/// itself.
constexpr const char* hook_question = R"(
words=$(tr '\0' '\n' </proc/$PPID/cmdline)
hook=$(printf '%s\n' "$words" | sed -n -e 's/^--fsfreeze-hook=//p' -e 's/^-F\(.\)/\1/p' | head -n 1)
[ -n "$hook" ] || { printf '%s\n' "$words" | grep -q -e '^-F$' -e '^--fsfreeze-hook$' &&
  hook=/etc/qemu/fsfreeze-hook; }
[ -n "$hook" ] || { echo "the guest's agent runs without --fsfreeze-hook"; exit 0; }
[ -x "$hook" ] || { echo "the guest has no hook $hook"; exit 0; }
if [ -d "$hook.d" ] && grep -q 'fsfreeze-hook.d' "$hook"; then
  for script in "$hook.d"/*; do [ -x "$script" ] && [ -f "$script" ] && exit 0; done
  echo "the guest has no hooks in $hook.d"
fi
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

/// Why a freeze that succeeds says nothing about applications; "" where it does.
Task<Result<std::string>> Quiescence::hook_answer() {
  std::string answer =
      CO_TRY(co_await run_in_guest(loop_, machine_.agent(), hook_question, question_patience));
  answer.resize(std::min(answer.size(), answer.find('\n')));
  co_return answer;
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
  if (const auto there = co_await machine_.agent().ping(agent_patience); !there)
    co_return Quiet{.reason = fmt::format("no guest agent answers: {}", there.error().message())};
  const auto hooks = co_await hook_answer();

  CO_TRY(write_small_file(marker(), "\n"));
  watchdog_ = CO_TRY(FreezeWatchdog::start(program_, machine_.agent_socket(), limit));
  frozen_since_ = loop_.now();
  Quiet quiet;
  auto frozen = co_await machine_.agent().freeze(limit);
  if (frozen) {
    quiet.file_systems = *frozen;
    quiet.consistency =
        hooks && hooks->empty() ? Consistency::application : Consistency::filesystem;
    if (!hooks) {
      quiet.reason =
          fmt::format("the guest does not say whether it has hooks: {}", hooks.error().message());
    } else {
      quiet.reason = *hooks;
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
  held_since_ = loop_.now();
  file_systems_ = quiet.file_systems;
  if (quiet.file_systems == 0) {
    quiet.consistency = Consistency::crash;
    if (quiet.reason.empty()) quiet.reason = "the guest has no file system that it can freeze";
    CO_TRY(co_await thaw());
  }
  co_return quiet;
}

Task<Result<Quiescence::Thawed>> Quiescence::thaw() {
  if (!is_frozen()) co_return Thawed{};
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
  outcome.in_time = watchdog_->dismiss() || file_systems_ == 0;
  watchdog_.reset();
  ::unlink(marker().c_str());
  co_return outcome;
}

Task<> Quiescence::recover() {
  if (!path_exists(marker()) || !machine_.is_on()) co_return;
  if (const auto thawed = co_await machine_.agent().thaw(thaw_patience); !thawed)
    log_warning("the guest may be frozen: {}", thawed.error().message());
  ::unlink(marker().c_str());
}

}  // namespace berth::machine
