#include "machine/vm/qemu_command.h"

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/units.h"
#include "machine/layout.h"
#include "machine/vm/qemu_arguments.h"

namespace berth::machine {
namespace {

// The bus pcie.0. Addresses are fixed, so that whatever a machine has is where every machine has
// it.
//   00     the host bridge, QEMU's
//   01     VGA, with vnc
//   02     virtio-serial, with the agent
//   03     random numbers
//   04     USB, for a pointer, with vnc
//   08-0f  networks
//   10-12  root ports, eight functions each: "slot-0" to "slot-23", a disk in each. They are always
//          there, since only a device in a root port of its own can come and go while the guest
//          runs.
//   1f     ICH9: ISA bridge, SATA (the CD drives) and SMBus, QEMU's
constexpr unsigned vga_address = 0x01;
constexpr unsigned serial_bus_address = 0x02;
constexpr unsigned random_address = 0x03;
constexpr unsigned usb_address = 0x04;
constexpr unsigned first_network_address = 0x08;
constexpr unsigned first_slot_address = 0x10;
constexpr unsigned functions_per_address = 8;
constexpr unsigned seed_slot_address = 0x13;
static_assert(first_network_address + machine_networks_max <= first_slot_address);
static_assert(first_slot_address + machine_disks_max / functions_per_address <= seed_slot_address);

// The firmware (SeaBIOS) tries one disk, that in the lowest slot, and then the CDs: where that disk
// is empty the installer's CD is booted, and when it has done its work the disk is.
constexpr unsigned first_disk_boot_index = 1;  // 0 is a kernel's, QEMU's choice
constexpr unsigned first_cdrom_boot_index = 101;

// A disk has one connection to its keeper. More queues than that take lock contention off guests
// with many CPUs; a guest uses no more than it has CPUs. Fixed, so that a disk that comes later has
// as many as one that was there from the start.
constexpr unsigned disk_queues = 4;

constexpr std::string_view disk_node_prefix = "disk-";

std::string address(unsigned device, unsigned function = 0) {
  return fmt::format("0x{:x}.{}", device, function);
}

std::string in(const QemuPlaces& places, std::string_view name) {
  return fmt::format("{}/{}", places.directory, name);
}

std::string user_network(const NetworkSpecification& network, std::size_t index) {
  std::string option = fmt::format("user,id=net{}", index);
  for (const PortForward& forward : network.forwards) {
    option += fmt::format(",hostfwd={}:{}:{}-:{}",
                          forward.protocol == PortForward::Protocol::tcp ? "tcp" : "udp",
                          forward.host_address, forward.host_port, forward.guest_port);
  }
  return option;
}

std::string mac_of(const Id128& machine_id, std::uint8_t index, std::uint8_t attempt) {
  std::array<std::byte, 18> key{};
  std::ranges::copy(machine_id.bytes, key.begin());
  key[16] = std::byte{index};
  key[17] = std::byte{attempt};
  const std::uint64_t hash = checksum64(key);
  return fmt::format("52:54:00:{:02x}:{:02x}:{:02x}", hash & 0xff, hash >> 8 & 0xff,
                     hash >> 16 & 0xff);
}

class CommandLine : private QemuArguments {
 public:
  CommandLine(const MachineSpecification& specification, const QemuPlaces& places)
      : QemuArguments(places.program), machine_(specification), places_(places) {}

  std::vector<std::string> build(const std::vector<AttachedDisk>& disks) {
    add_process(machine_.name);
    add("-action", "reboot=reset,shutdown=pause,panic=pause");
    add_machine();
    add_firmware();
    add_sockets();
    add_bus();
    add_networks();
    for (const AttachedDisk& disk : disks) {
      add("-blockdev", blockdev_add_arguments(disk).dump());
      add_device(device_add_arguments(disk));
    }
    if (places_.incoming) add("-incoming", "defer");
    return take();
  }

 private:
  void add_machine() {
    // Without a screen the firmware talks to the serial console. A dump of QEMU has nothing of the
    // guest's. vmport is VMware's back door: nobody needs it here.
    add("-machine", fmt::format("{},memory-backend=ram,graphics={},vmport=off,dump-guest-core=off",
                                machine_.machine_type, machine_.vnc ? "on" : "off"));
    add_accelerator(places_.kvm, tcg_code_bytes_max);
    // enforce: what this host cannot give is an error, not another CPU than the one asked for.
    add("-cpu", machine_.cpu_model == "host" ? "host" : machine_.cpu_model + ",enforce");
    add("-smp", fmt::format("cpus={0},sockets=1,cores={0},threads=1", machine_.cpus));
    add_memory(machine_.memory, places_.memory_file);
    add("-uuid", places_.machine_id.to_string());
    // The guest's clock chip shows the host's time, after a pause too.
    add("-rtc", "base=utc,clock=host");
    // A guest that suspends itself would look like a dead one, and nothing could wake it after a
    // revert to a checkpoint.
    add("-global", "ICH9-LPC.disable_s3=1");
    add("-global", "ICH9-LPC.disable_s4=1");
  }

  void add_firmware() {
    add("-boot", "strict=on");
    if (places_.kernel.empty()) return;
    add("-kernel", places_.kernel);
    if (!places_.initrd.empty()) add("-initrd", places_.initrd);
    if (!machine_.kernel.command_line.empty()) add("-append", machine_.kernel.command_line);
  }

  void add_sockets() {
    add_monitor(in(places_, qmp_socket_name));
    add_socket(
        "console", in(places_, console_socket_name),
        fmt::format(",logfile={},logappend=on", escaped_for_qemu(in(places_, console_log_name))));
    add_device({{"driver", "isa-serial"}, {"id", "serial"}, {"chardev", "console"}});
    if (machine_.vnc)
      add("-vnc", "unix:" + escaped_for_qemu(in(places_, vnc_socket_name)));
    else
      add("-display", "none");
  }

  void add_bus() {
    add_device({{"driver", "pvpanic"}, {"id", "panic"}});
    if (machine_.vnc) {
      add_device(on_bus("VGA", "vga", vga_address));
      add_device(on_bus("qemu-xhci", "usb", usb_address));
      // Its pointer is where the viewer's is.
      add_device({{"driver", "usb-tablet"}, {"id", "tablet"}, {"bus", "usb.0"}});
    }
    if (machine_.agent) {
      add_device(on_bus("virtio-serial-pci", "virtio-serial", serial_bus_address));
      add_socket("agent", in(places_, agent_socket_name));
      add_device({{"driver", "virtserialport"},
                  {"id", "agent"},
                  {"bus", "virtio-serial.0"},
                  {"nr", 1},
                  {"chardev", "agent"},
                  {"name", "org.qemu.guest_agent.0"}});
    }
    add("-object", R"({"qom-type":"rng-builtin","id":"random-source"})");
    Json random = on_bus("virtio-rng-pci", "random", random_address);
    random["rng"] = "random-source";
    add_device(random);
    for (unsigned slot = 0; slot < machine_disks_max; ++slot) {
      add_root_port(fmt::format("slot-{}", slot), slot + 1,
                    first_slot_address + slot / functions_per_address,
                    slot % functions_per_address);
    }
    add_root_port("slot-seed", machine_disks_max + 1, seed_slot_address, 0);
  }

  void add_root_port(std::string_view id, unsigned number, unsigned device, unsigned function) {
    Json port = on_bus("pcie-root-port", id, device, function);
    port["multifunction"] = function == 0;
    for (const char* property : {"chassis", "slot", "port"}) port[property] = number;
    add_device(port);
  }

  void add_networks() {
    for (std::size_t i = 0; i < machine_.networks.size(); ++i) {
      const NetworkSpecification& network = machine_.networks[i];
      if (network.mode == NetworkSpecification::Mode::user) {
        add("-netdev", user_network(network, i));
      } else {
        // No vhost: the kernel would write into the guest's memory behind dirty tracking's back.
        add("-netdev", fmt::format("tap,id=net{},ifname={},script=no,downscript=no,vhost=off", i,
                                   escaped_for_qemu(network.tap)));
      }
      Json device = on_bus("virtio-net-pci", fmt::format("nic{}", i),
                           first_network_address + static_cast<unsigned>(i));
      device["netdev"] = fmt::format("net{}", i);
      device["mac"] = network.mac;
      device["romfile"] = "";  // no machine boots from a network
      add_device(device);
    }
  }

  static Json on_bus(std::string_view driver, std::string_view id, unsigned device,
                     unsigned function = 0) {
    return {{"driver", driver}, {"id", id}, {"bus", "pcie.0"}, {"addr", address(device, function)}};
  }

  const MachineSpecification& machine_;
  const QemuPlaces& places_;
};

}  // namespace

std::string disk_node(std::string_view name) { return fmt::format("{}{}", disk_node_prefix, name); }

std::string disk_name(std::string_view node) {
  if (node.starts_with(disk_node_prefix)) node.remove_prefix(disk_node_prefix.size());
  return std::string(node);
}

void complete(MachineSpecification& specification, const Id128& machine_id) {
  if (specification.machine_type.empty()) specification.machine_type = machine_type_default;
  if (specification.cpu_model.empty()) specification.cpu_model = cpu_model_default;
  std::set<std::string> taken;
  for (const NetworkSpecification& network : specification.networks) taken.insert(network.mac);
  for (std::size_t i = 0; i < specification.networks.size(); ++i) {
    std::string& mac = specification.networks[i].mac;
    // There are fewer networks than attempts: one of them is free.
    for (std::uint8_t attempt = 0; mac.empty(); ++attempt) {
      std::string candidate = mac_of(machine_id, static_cast<std::uint8_t>(i), attempt);
      if (taken.insert(candidate).second) mac = std::move(candidate);
    }
  }
}

Result<void> check_command(const MachineSpecification& specification,
                           const std::vector<AttachedDisk>& disks, const QemuPlaces& places) {
  if (specification.cpu_model == "host" && !places.kvm) {
    return failure(ErrorKind::precondition,
                   fmt::format("machine '{}' has the CPU \"host\", which needs KVM, and there is "
                               "none here; name a model such as \"{}\"",
                               specification.name, cpu_model_default));
  }
  for (const std::string_view name :
       {qmp_socket_name, agent_socket_name, console_socket_name, vnc_socket_name})
    TRY(check_socket_path(in(places, name)));
  for (const AttachedDisk& disk : disks) TRY(check_socket_path(disk.socket));
  return {};
}

std::vector<std::string> qemu_command(const MachineSpecification& specification,
                                      const std::vector<AttachedDisk>& disks,
                                      const QemuPlaces& places) {
  return CommandLine(specification, places).build(disks);
}

Json blockdev_add_arguments(const AttachedDisk& disk) {
  // No open-timeout: the keeper serves a disk before it hands it to QEMU, and a monitor that waits
  // for it would stop the guest meanwhile.
  return {{"driver", "nbd"},
          {"node-name", disk.node},
          {"server", {{"type", "unix"}, {"path", disk.socket}}},
          {"export", disk.export_name},
          {"read-only", disk.read_only || disk.kind != AttachedDisk::Kind::disk},
          {"reconnect-delay", nbd_reconnect_delay_s},
          {"cache", {{"direct", true}, {"no-flush", false}}},
          {"discard", "unmap"}};
}

Json device_add_arguments(const AttachedDisk& disk) {
  Json device = {{"id", disk.node},
                 {"drive", disk.node},
                 {"serial", disk.node},
                 {"rerror", "stop"},
                 {"werror", "stop"}};
  if (disk.kind == AttachedDisk::Kind::cdrom) {
    CHECK(disk.slot < machine_cdroms_max);
    // SATA, which q35 has anyway: every firmware and installer knows it.
    device["driver"] = "ide-cd";
    device["bus"] = fmt::format("ide.{}", disk.slot);
    device["bootindex"] = first_cdrom_boot_index + disk.slot;
    return device;
  }
  device["driver"] = "virtio-blk-pci";
  device["num-queues"] = disk_queues;
  device["addr"] = address(0);
  if (disk.kind == AttachedDisk::Kind::seed) {
    // A virtio disk, not a CD: cloud kernels (Debian's) have no driver for a SATA drive, and
    // cloud-init looks for a file system with the right label, wherever it is.
    device["bus"] = "slot-seed";
    return device;
  }
  CHECK(disk.slot < machine_disks_max);
  if (disk.node.starts_with(disk_node_prefix)) device["serial"] = disk_name(disk.node);
  device["bus"] = fmt::format("slot-{}", disk.slot);
  device["bootindex"] = first_disk_boot_index + disk.slot;
  return device;
}

}  // namespace berth::machine
