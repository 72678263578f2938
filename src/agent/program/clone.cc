#include "agent/program/clone.h"

#include <algorithm>
#include <utility>

#include "agent/program/identity.h"
#include "agent/program/rehearsal.h"
#include "agent/program/small_files.h"

namespace berth::agent {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds freeze_limit{10'000};
constexpr std::uint64_t default_hook_ms = 10'000;
constexpr std::uint64_t hook_max_ms = 600'000;

/// While the workload stands.
Result<void> change_identity(const Fields& fields) {
  TRY(set_identity(fields, Readers::none));
  return set_network(fields, Readers::none);
}

std::vector<std::string> environment_of_hooks() {
  return {"BERTH_CLONE_HOSTNAME=" + read_line("/proc/sys/kernel/hostname"),
          "BERTH_CLONE_MACHINE_ID=" + read_line("/etc/machine-id")};
}

}  // namespace

Result<void> Clone::begin(Bytes payload, Done done) {
  if (is_running()) return failure(ErrorKind::in_use, "it becomes a clone already");
  payload_.assign(payload.begin(), payload.end());
  done_ = std::move(done);
  // From a template it comes frozen; then this is done at once.
  auto begun = workload_.freeze(freeze_limit, [this](Result<void> frozen) {
    if (frozen) {
      const auto fields = Fields::decode(payload_);
      frozen = fields ? change_identity(*fields) : std::unexpected(fields.error());
    }
    if (!frozen) return finish(std::move(frozen));
    run_hooks();
  });
  if (!begun) done_ = nullptr;
  return begun;
}

Result<std::uint16_t> Clone::rehearse(const Fields& fields) {
  if (is_running()) return failure(ErrorKind::in_use, "it becomes a clone");
  if (!workload_.is_frozen()) return failure(ErrorKind::precondition, "its workload runs");
  TRY(rehearse_identity(fields));
  TRY(change_identity(fields));
  if (!Hooks::found().empty()) {
    (void)environment_of_hooks();
    TRY(workload_.adopt_hooks());
  }
  return agent::rehearse(workload_);
}

void Clone::run_hooks() {
  const auto fields = Fields::decode(payload_);
  const auto limit_ms = fields ? fields->number_or(Tag::timeout_ms, default_hook_ms)
                               : Result<std::uint64_t>(std::unexpected(fields.error()));
  if (!limit_ms) return finish(std::unexpected(limit_ms.error()));
  std::vector<std::string> found = Hooks::found();
  const bool any = !found.empty();
  HookSettings settings{.limit = milliseconds(std::min(*limit_ms, hook_max_ms)),
                        .cgroup = workload_.hooks_cgroup()};
  if (any) settings.environment = environment_of_hooks();
  hooks_.run(std::move(found), std::move(settings), [this, any](Result<void> ran) {
    if (!ran) workload_.kill_hooks();
    if (ran && any) ran = workload_.adopt_hooks();
    if (ran) ran = workload_.thaw();
    finish(std::move(ran));
  });
}

void Clone::finish(Result<void> result) {
  payload_.clear();
  if (const Done done = std::exchange(done_, nullptr)) done(std::move(result), hooks_.report());
}

}  // namespace berth::agent
