// Machine: disks that come and go, limits, and what it shows of itself.

#include <algorithm>

#include <fmt/format.h>

#include "base/units.h"
#include "machine/control_messages.h"
#include "machine/vm/admission.h"
#include "machine/vm/machine.h"

namespace berth::machine {
namespace {

constexpr Duration unplug_patience = std::chrono::seconds(15);
constexpr Duration agent_patience = std::chrono::milliseconds(1500);
constexpr Duration poll_interval = std::chrono::milliseconds(20);

}  // namespace

Task<Result<void>> Machine::attach(AttachedDisk disk) {
  const auto guard = co_await changing_.lock();
  CO_TRY(co_await command("blockdev-add", blockdev_add_arguments(disk)));
  auto added = co_await command("device_add", device_add_arguments(disk));
  if (!added) {
    (void)co_await command("blockdev-del", {{"node-name", disk.node}});
    co_return failure(std::move(added).error());
  }
  start_.disks.push_back(std::move(disk));
  co_return save_launch();
}

Task<Result<void>> Machine::detach(std::string node) {
  const auto guard = co_await changing_.lock();
  const auto disk = std::ranges::find(start_.disks, node, &AttachedDisk::node);
  if (disk == start_.disks.end()) {
    co_return failure(ErrorKind::not_found,
                      fmt::format("the machine '{}' has no disk '{}'", options_.name, node));
  }
  const std::string device = device_add_arguments(*disk).value("id", std::string());
  unplugged_.clear();
  CO_TRY(co_await command("device_del", {{"id", device}}));
  const Instant deadline = loop_.now() + unplug_patience;
  while (std::ranges::find(unplugged_, device) == unplugged_.end()) {
    if (loop_.now() > deadline) {
      co_return failure(
          ErrorKind::timed_out,
          fmt::format("the guest does not give the disk '{}' back: it has to be running, "
                      "and not to be using it",
                      node));
    }
    co_await loop_.sleep(poll_interval);
  }
  CO_TRY(co_await command("blockdev-del", {{"node-name", node}}));
  std::erase_if(start_.disks, [&node](const AttachedDisk& each) { return each.node == node; });
  co_return save_launch();
}

Result<void> Machine::limit(const LimitSpecification& limits) {
  const std::uint64_t needed = memory_of(record_.specification, kvm_).overhead;
  if (limits.memory != 0 && limits.memory < needed) {
    return failure(ErrorKind::precondition,
                   fmt::format("limits.memory is {}, and QEMU needs about {} for the machine '{}': "
                               "raise it, or set 0 for no limit",
                               format_size(limits.memory), format_size(needed), options_.name));
  }
  record_.specification.limits = limits;  // what slow() comes back to
  TRY(group_.limit_cpus(limits.cpus));
  // Memory objects are charged to the group of whoever touches them first: to QEMU's.
  return group_.limit_memory(limits.memory == 0 ? 0 : limits.memory + memory_size());
}

Result<void> Machine::slow(unsigned percent) {
  const MachineSpecification& specification = record_.specification;
  const double whole =
      specification.limits.cpus > 0 ? specification.limits.cpus : double(specification.cpus);
  return group_.limit_cpus(percent >= 100 ? specification.limits.cpus : whole * percent / 100);
}

Task<std::string> Machine::shown_status() {
  if (phase_ == Phase::off) co_return wish_.crashed ? "crashed" : "stopped";
  if (phase_ == Phase::starting) co_return "starting";
  const auto status = co_await guest_status();
  if (!status) co_return "unreachable";
  if (!expected_end_.empty()) co_return "stopping";
  if (*status == "running") co_return "running";
  if (*status == "io-error") co_return "io_error";
  if (*status == "guest-panicked") co_return "panicked";
  if (wish_.suspended) co_return "suspended";
  co_return "paused";
}

/// QEMU says whether somebody in the guest has opened the port (`frontend-open`). What is asked
/// when nobody has is lost, or answered when nobody waits any more.
Task<bool> Machine::has_agent() {
  if (!record_.specification.agent) co_return false;
  const auto ports = co_await command("query-chardev", Json::object());
  if (!ports || !ports->is_array()) co_return false;
  for (const Json& port : *ports) {
    if (port.is_object() && port.value("label", Json()) == "agent")
      co_return port.value("frontend-open", Json()) == true;
  }
  co_return false;
}

Task<Json> Machine::info(bool with_addresses) {
  const std::string status = co_await shown_status();
  Json json = {{"state", status}};
  if (phase_ == Phase::off) co_return json;
  const ControlGroupUsage usage = group_.usage();
  Json disks = Json::array();
  for (const AttachedDisk& disk : start_.disks) disks.push_back(encode(disk));
  json.update({{"pid", pid() != 0 ? Json(pid()) : Json()},
               {"started_at", started_at_},
               {"accelerator", accelerator()},
               {"qemu", qemu_version_},
               {"disks", std::move(disks)},
               {"memory_used", usage.memory_bytes ? Json(*usage.memory_bytes) : Json()},
               {"console", qemu_directory() + "/console.sock"},
               {"vnc", record_.specification.vnc ? Json(qemu_directory() + "/vnc.sock") : Json()}});
  Json addresses = Json::array();
  bool answers = false;
  if (with_addresses && status == "running" && co_await has_agent()) {
    const auto found = co_await agent_->addresses(agent_patience);
    answers = found.has_value();
    for (const GuestAddress& address : found.value_or(std::vector<GuestAddress>{})) {
      addresses.push_back({{"interface", address.interface},
                           {"mac", address.mac},
                           {"address", address.address},
                           {"prefix", address.prefix}});
    }
  }
  json["agent"] = answers;
  json["pause"] = pause_level() == PauseLevel::none ? Json() : encode(pause_);
  json["addresses"] = std::move(addresses);
  co_return json;
}

}  // namespace berth::machine
