// QEMU's command line for a machine. Pure: from the specification and from where things are.
//
// QEMU holds nothing of its keeper's (DESIGN §3): monitor, agent, consoles and VNC are sockets that
// it serves itself in `directory`, disks are NBD clients that reconnect, memory is a file. The
// guest's view (machine type, CPU, PCI addresses, the order of devices) depends on the
// specification alone, so that a saved state fits again: qemu_command.cc has the map of the
// machine's bus.
//
// Written for QEMU 7.2 and later. Sources: qemu-system-x86_64(1); QEMU, qapi/block-core.json.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "machine/vm/specification.h"

namespace berth::machine {

// What QEMU makes in its directory.
constexpr std::string_view qmp_socket_name = "qmp.sock";
constexpr std::string_view agent_socket_name = "agent.sock";      // with specification.agent
constexpr std::string_view console_socket_name = "console.sock";  // the serial console
constexpr std::string_view vnc_socket_name = "vnc.sock";          // with specification.vnc
/// All that the console has said, listened to or not. QEMU appends, and never shortens it: who
/// bounds it may truncate it at any time.
constexpr std::string_view console_log_name = "console.log";

/// For so long a guest's requests wait for the keeper that serves their disk to come back; then
/// they fail, and QEMU stops the guest (`rerror=stop`). As long a command of the monitor may hang.
constexpr unsigned nbd_reconnect_delay_s = 30;

/// How much translated code QEMU keeps when it emulates the CPU; admission.h counts on it.
constexpr std::uint64_t tcg_code_bytes_max = std::uint64_t{128} << 20;

constexpr std::string_view machine_type_default = "pc-q35-7.2";
/// The newest named model that QEMU 7.2 emulates whole, and that no x86-64 host of the last decade
/// lacks anything of (x86-64-v2 with AES).
constexpr std::string_view cpu_model_default = "Westmere-v1";

/// Where a disk is served. `node` is QEMU's name for it: "disk-NAME", "cdrom-N", "seed"; the device
/// has the same id, and for a disk NAME is the serial number that the guest sees.
struct AttachedDisk {
  std::string node;
  std::string socket;  // of the NBD server
  std::string export_name;
  bool read_only = false;  // a CD or a seed always is
  enum class Kind : std::uint8_t { disk, cdrom, seed } kind = Kind::disk;
  // The device's fixed place, by this and not by order: of a disk below machine_disks_max, of a CD
  // below machine_cdroms_max; there is one seed.
  std::uint8_t slot = 0;
  friend bool operator==(const AttachedDisk&, const AttachedDisk&) = default;
};

/// QEMU's name for the disk that the machine calls `name`, and back; other nodes' names as they
/// are.
std::string disk_node(std::string_view name);
std::string disk_name(std::string_view node);

struct QemuPlaces {
  std::string program = "/usr/bin/qemu-system-x86_64";
  std::string directory;    // of the machine's QEMU alone, see above
  std::string memory_file;  // the memory object: exists, and has the machine's size
  std::string kernel;       // copies that QEMU may read; "" for none
  std::string initrd;
  bool kvm = false;       // else TCG
  bool incoming = false;  // wait for a device state (`-incoming defer`)
  Id128 machine_id;       // SMBIOS UUID
};

/// Fills in what a vm.toml may leave out: machine type, CPU model, MACs (from the id).
void complete(MachineSpecification& specification, const Id128& machine_id);

/// What would keep QEMU from starting, as far as can be seen from here: `precondition` for the CPU
/// "host" without KVM, `invalid_argument` for a socket's path that is too long.
Result<void> check_command(const MachineSpecification& specification,
                           const std::vector<AttachedDisk>& disks, const QemuPlaces& places);

/// argv, program first. `specification` has been checked and completed, the rest as above.
///
/// The guest runs at once, unless it waits for a device state. A guest that has powered itself off
/// or has panicked stays, stopped ("shutdown", "guest-panicked"), until somebody says `quit`; a
/// reboot is one. SIGTERM ends QEMU.
std::vector<std::string> qemu_command(const MachineSpecification& specification,
                                      const std::vector<AttachedDisk>& disks,
                                      const QemuPlaces& places);

// For a disk that comes while the machine runs: the arguments of QMP's blockdev-add and device_add.
// The command line has the very same. A CD drive cannot come later.
Json blockdev_add_arguments(const AttachedDisk& disk);
Json device_add_arguments(const AttachedDisk& disk);

}  // namespace berth::machine
