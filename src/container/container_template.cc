// A template is made of a container that runs on: its memory is copied in rounds, and it stands
// only for the last of them.

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/log.h"
#include "container/container.h"
#include "machine/vm/memory_save.h"
#include "machine/vm/saved_guest.h"

namespace berth::container {
namespace {

using agent::FieldWriter;
using agent::Operation;

constexpr Duration request_timeout = std::chrono::seconds(20);
constexpr Duration quiet_patience = std::chrono::seconds(2);

}  // namespace

class Container::Saved final : public machine::SavedGuest {
 public:
  Saved(Container& container, MicroVm& vm) : container_(container), vm_(vm) {}

  Result<void> check_runs() override {
    TRY(container_.link());
    return {};
  }
  bool tracks_memory() const override { return !container_.options_.preload.empty(); }
  pid_t pid() const override { return vm_.pid(); }
  std::string memory_file() const override { return vm_.memory_process().memory_file; }
  std::uint64_t memory_size() const override { return container_.record_.specification.memory; }
  std::vector<std::string> disk_files() const override { return {}; }
  Task<AsyncMutex::Guard> hold() override { co_return co_await container_.changing_.lock(); }
  bool is_suspended() const override { return false; }
  Result<void> slow(unsigned percent) override { return vm_.slow(percent); }
  Duration stood() const override { return stood_; }
  std::string qemu_directory() const override { return vm_.qemu_directory(); }
  uid_t qemu_user() const override { return vm_.qemu_user(); }

  Task<Result<machine::Json>> command(std::string name, machine::Json arguments) override {
    const bool stands = name == "stop";
    const bool goes_on = name == "cont";
    auto answer = co_await vm_.command(std::move(name), std::move(arguments));
    if (stands) stands_since_ = container_.loop_.now();
    if (goes_on) stood_ = container_.loop_.now() - stands_since_;
    co_return answer;
  }

  /// Clones find the workload frozen, and the agent between two frames.
  Task<Result<void>> rest() override {
    container_.is_saving_ = true;
    CO_TRY(container_.save_launch());
    CO_TRY(co_await container_.rest_workload());
    co_return co_await container_.link_->hold(quiet_patience);
  }
  Task<> wake() override {
    const std::shared_ptr<AgentLink> link = container_.link_;
    if (link && link->is_open()) {
      link->release();
      const auto thawed = co_await link->request(FieldWriter(Operation::thaw), request_timeout);
      if (!thawed) log_error("the workload stays frozen: {}", thawed.error().message());
    }
    container_.is_saving_ = false;
    if (const auto saved = container_.save_launch(); !saved)
      log_warning("{}", saved.error().message());
  }

 private:
  Container& container_;
  MicroVm& vm_;
  Instant stands_since_{};
  Duration stood_{};
};

Task<Result<machine::MemorySaveFigures>> Container::copy_template(std::string directory) {
  CO_TRY(link());
  MicroVm* const vm = CO_TRY(microvm());
  if (phase_ != Phase::running || !main_ || main_->end()) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the container '{}' does not run", options_.name));
  }
  if (record_.specification.has_volumes()) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("'{}' has volumes: clones would share them", options_.name));
  }
  if (!template_memory_.empty()) {
    co_return failure(
        ErrorKind::unsupported,
        fmt::format("'{}' is a clone: make a template of what it is a clone of", options_.name));
  }
  Saved guest(*this, *vm);
  machine::MemorySave save(loop_, guest);
  auto begun = co_await save.begin(
      std::move(directory), [](std::uint64_t, std::uint64_t) {},
      [this]() -> Result<void> {
        if (!closing_) return {};
        return failure(ErrorKind::cancelled, "the keeper ends");
      });
  CO_TRY(begun);
  co_return co_await save.finish();
}

}  // namespace berth::container
