// Container: what is different where its processes are in the host's kernel.

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "base/units.h"
#include "container/container.h"

namespace berth::container {
namespace {

using Isolation = ContainerSpecification::Isolation;
using Network = ContainerSpecification::Network;

}  // namespace

void Container::make_machine() {
  const ContainerSpecification& wanted = record_.specification;
  microvm_ = nullptr;
  processes_in_host_ = nullptr;
  if (wanted.isolation == Isolation::process) {
    auto made = std::make_unique<ProcessSandbox>(
        loop_, ProcessSandbox::Options{.name = options_.name,
                                       .run = options_.run,
                                       .id = record_.id,
                                       .uid = record_.uid,
                                       .hostname = wanted.hostname,
                                       .cpus = wanted.cpus,
                                       .memory = wanted.memory,
                                       .network = wanted.network == Network::user});
    processes_in_host_ = made.get();
    machine_ = std::move(made);
    return;
  }
  const auto cpus = static_cast<unsigned>(std::max(1.0, std::ceil(wanted.cpus)));
  auto made = std::make_unique<MicroVm>(
      loop_,
      MicroVm::Options{.name = options_.name,
                       .run = options_.run,
                       .memory_dir = options_.memory_dir,
                       .preload = options_.preload,
                       .id = record_.id,
                       .uid = record_.uid,
                       .cpus = cpus,
                       .cpu_limit = wanted.cpus < cpus ? wanted.cpus : 0,
                       .memory = wanted.memory,
                       .network = wanted.network == Network::user,
                       .has_overlay = !wanted.overlay.empty()},
      [this](const char* event, std::string message) { report_(event, std::move(message)); });
  microvm_ = made.get();
  machine_ = std::move(made);
}

Result<void> Container::check_start(const Sandbox::Start& start) const {
  const bool is_process = record_.specification.isolation == Isolation::process;
  if (is_process && start.restore)
    return failure(ErrorKind::unsupported, "a clone has a microVM of its own");
  if (is_process == !start.agent.empty()) return {};
  return failure(ErrorKind::invalid_argument,
                 is_process ? "agent: a container in the host's kernel needs its path"
                            : "kernel: a microVM needs its path");
}

Result<MicroVm*> Container::microvm() const {
  if (microvm_ != nullptr) return microvm_;
  return failure(ErrorKind::unsupported,
                 fmt::format("'{}' runs in the host's kernel (--isolation process): only a microVM "
                             "can become a template, or be cloned",
                             options_.name));
}

Result<void> Container::check_level(PauseLevel level) const {
  if (microvm_ != nullptr || level <= PauseLevel::trimmed) return {};
  return failure(ErrorKind::unsupported,
                 fmt::format("'{}' runs in the host's kernel (--isolation process): it can be "
                             "frozen or trimmed; only a microVM can be {}",
                             options_.name, to_string(level)));
}

Task<Result<void>> Container::trim_processes() {
  const auto [before, after] = CO_TRY(co_await processes_in_host_->trim());
  pause_.level = PauseLevel::trimmed;
  pause_.since = format_time(loop_.wall_time());
  pause_.memory = PageFiles::Report{
      .before = {.guest = before.resident, .swapped = before.swapped, .process = 0},
      .after = {.guest = after.resident, .swapped = after.swapped, .process = 0}};
  co_return Result<void>{};
}

}  // namespace berth::container
