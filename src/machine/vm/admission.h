// Whether a host has the memory for one more machine. Pure.
//
// A machine counts with all of its memory, whether its guest has touched it yet or not: a guest
// that is promised memory which is not there would be ended by the kernel in the middle of its
// work.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "machine/vm/specification.h"

namespace berth::machine {

/// QEMU's own private memory: 45 MiB with a booted guest of two CPUs (measured, QEMU 7.2), with VNC
/// 16 MiB more for the screen.
constexpr std::uint64_t qemu_overhead_bytes = std::uint64_t{64} << 20;
/// What a CPU more costs: 0.6 MiB (measured with 255).
constexpr std::uint64_t qemu_overhead_bytes_per_cpu = std::uint64_t{1} << 20;
/// What the kernel, the daemon and everything else on the host keep.
constexpr std::uint64_t host_reserve_bytes = std::uint64_t{256} << 20;

/// A clone shares what it has not written to with its template: it counts with a part of its memory
/// (docs/decisions/0010), and only as long as the host really has that to give.
constexpr std::uint64_t clone_memory_parts = 4;

struct MachineMemory {
  std::string name;
  std::uint64_t memory = 0;    // bytes, the memory object; of a clone, what it counts with
  std::uint64_t overhead = 0;  // bytes, QEMU
  bool is_clone = false;       // has no memory object of its own
  std::uint64_t total() const { return memory + overhead; }
};

/// What a machine counts with. Emulation (`kvm` false) has translated code to keep as well.
MachineMemory memory_of(const MachineSpecification& specification, bool kvm);

struct MemoryAdmission {
  std::uint64_t ram = 0;        // bytes, of the host
  std::uint64_t swap = 0;       // bytes
  std::uint64_t available = 0;  // bytes of both that can be had now, without hurting anybody
  // Of the file system where the memory objects are. Free is what it shows: an object takes its
  // pages only as its guest touches them.
  std::uint64_t memory_dir_size = 0;
  std::uint64_t memory_dir_free = 0;
  std::vector<MachineMemory> running;
};

/// `limit`, with the sum in words, if `machine` does not fit beside those that run (itself, if it
/// is among them, not counted).
Result<void> check_admission(const MemoryAdmission& host, const MachineMemory& machine);

}  // namespace berth::machine
