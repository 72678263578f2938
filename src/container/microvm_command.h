// QEMU's command line for a container's microVM: a machine with nothing but what the container
// needs. Pure.
//
// Source: QEMU, docs/system/i386/microvm.rst; DESIGN §6, rule 4; what the guest looks for is in
// docs/formats/container-agent.md, "The guest".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "machine/vm/qemu_command.h"

namespace berth::container {

/// Translated code that is kept where guests are emulated: a container runs little beside its
/// kernel.
constexpr std::uint64_t microvm_tcg_code_bytes_max = std::uint64_t{64} << 20;

struct MicroVmSpecification {
  std::string name;
  Id128 id;                  // SMBIOS UUID, and what the MAC is made from
  unsigned cpus = 1;         // virtual ones
  std::uint64_t memory = 0;  // bytes
  bool network = true;
  std::string overlay;                       // node of the disk that is the overlay; ""
  std::vector<machine::AttachedDisk> disks;  // the overlay first, then what is mounted, in order
};

struct MicroVmPlaces {
  std::string program = "/usr/bin/qemu-system-x86_64";
  std::string directory;    // of its QEMU alone
  std::string memory_file;  // the memory object
  std::string kernel;       // that QEMU may read; "": what it needs of them is in its memory
  std::string initrd;
  int image_fd = -1;  // of the image's file system, open for reading; QEMU inherits it
  bool kvm = false;
  bool incoming = false;      // wait for a device state
  std::uint64_t tsc_khz = 0;  // that its time stamp counter has, where the guest is to be told
};

/// The serial number of the disk that is mounted as number `index`.
std::string mount_serial(std::size_t index);
/// Locally administered, the same for the same id.
std::string microvm_mac(const Id128& id);

/// argv, program first. A guest that powers off, reboots or panics ends its QEMU.
std::vector<std::string> microvm_command(const MicroVmSpecification& specification,
                                         const MicroVmPlaces& places);

}  // namespace berth::container
