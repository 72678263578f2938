#include "machine/vm/admission.h"

#include <fmt/format.h>

#include "base/units.h"
#include "machine/vm/qemu_command.h"

namespace berth::machine {
namespace {

struct Others {
  std::size_t count = 0;
  std::uint64_t memory = 0;
  std::uint64_t total = 0;
};

Others others_than(const MemoryAdmission& host, const MachineMemory& machine) {
  Others others;
  for (const MachineMemory& running : host.running) {
    if (running.name == machine.name) continue;
    ++others.count;
    if (!running.is_clone) others.memory += running.memory;
    others.total += running.total();
  }
  return others;
}

std::string in_words(const Others& others, std::uint64_t bytes) {
  if (others.count == 0) return "no other machine runs";
  return fmt::format("{} running machine{} {} {}", others.count, others.count == 1 ? "" : "s",
                     others.count == 1 ? "has" : "have", format_size(bytes));
}

Result<void> check_ram(const MemoryAdmission& host, const MachineMemory& machine,
                       const Others& others) {
  const std::uint64_t all = host.ram + host.swap;
  const std::uint64_t wanted = host_reserve_bytes + others.total + machine.total();
  if (wanted <= all) return {};
  return failure(
      ErrorKind::limit,
      fmt::format(
          "machine '{}' needs {} ({} of memory and {} for QEMU); {}, the host keeps {}, and "
          "RAM and swap are {} ({} and {}): {} too little. Stop a machine, give this one "
          "less memory, or add swap",
          machine.name, format_size(machine.total()), format_size(machine.memory),
          format_size(machine.overhead), in_words(others, others.total),
          format_size(host_reserve_bytes), format_size(all), format_size(host.ram),
          format_size(host.swap), format_size(wanted - all)));
}

/// Clones that have grown past what they count with have taken it from those that come later.
Result<void> check_available(const MemoryAdmission& host, const MachineMemory& machine) {
  const std::uint64_t wanted = host_reserve_bytes + machine.total();
  if (wanted <= host.available) return {};
  return failure(
      ErrorKind::limit,
      fmt::format("machine '{}' needs {} ({} of memory and {} for QEMU), the host keeps {}, and {} "
                  "are left: {} too little. Stop a machine, park some, or add swap",
                  machine.name, format_size(machine.total()), format_size(machine.memory),
                  format_size(machine.overhead), format_size(host_reserve_bytes),
                  format_size(host.available), format_size(wanted - host.available)));
}

Result<void> check_directory(const MemoryAdmission& host, const MachineMemory& machine,
                             const Others& others) {
  const std::uint64_t wanted = others.memory + machine.memory;
  if (wanted > host.memory_dir_size) {
    return failure(
        ErrorKind::limit,
        fmt::format("machine '{}' needs {} of memory; {} there, and the memory directory holds {}: "
                    "{} too little. Stop a machine, give this one less memory, or mount the "
                    "directory larger",
                    machine.name, format_size(machine.memory), in_words(others, others.memory),
                    format_size(host.memory_dir_size), format_size(wanted - host.memory_dir_size)));
  }
  if (machine.memory > host.memory_dir_free) {
    return failure(
        ErrorKind::limit,
        fmt::format("machine '{}' needs {} of memory, and of the {} of the memory directory {} are "
                    "free: {} too little. Remove what else is in it, or mount it larger",
                    machine.name, format_size(machine.memory), format_size(host.memory_dir_size),
                    format_size(host.memory_dir_free),
                    format_size(machine.memory - host.memory_dir_free)));
  }
  return {};
}

}  // namespace

MachineMemory memory_of(const MachineSpecification& specification, bool kvm) {
  return {.name = specification.name,
          .memory = specification.memory,
          .overhead = qemu_overhead_bytes + qemu_overhead_bytes_per_cpu * specification.cpus +
                      (kvm ? 0 : tcg_code_bytes_max)};
}

Result<void> check_admission(const MemoryAdmission& host, const MachineMemory& machine) {
  const Others others = others_than(host, machine);
  TRY(check_ram(host, machine, others));
  if (machine.is_clone) return check_available(host, machine);
  return check_directory(host, machine, others);
}

}  // namespace berth::machine
