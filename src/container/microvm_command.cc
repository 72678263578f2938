#include "container/microvm_command.h"

#include <fmt/format.h>

#include "agent/protocol.h"
#include "machine/control_protocol.h"

namespace berth::container {
namespace {

using machine::Json;

constexpr std::uint64_t MiB = std::uint64_t{1} << 20;

// Without pit Linux calibrates the CPU's clock against a timer that is disturbed on a busy host.
constexpr const char* machine_type = "microvm,acpi=on,pcie=on,pit=on,pic=on,rtc=on";
// A panic ends the guest (reboot at once, which QEMU takes for an end). Mitigations are against
// others in the same guest, and a container is alone in its own.
constexpr const char* command_line =
    "console=ttyS0 quiet panic=-1 reboot=t mitigations=off no_timer_check";

/// In an option of QEMU's, a comma that belongs to a value is written twice.
std::string escaped(const std::string& value) {
  std::string text;
  for (const char c : value) {
    text += c;
    if (c == ',') text += ',';
  }
  return text;
}

class CommandLine {
 public:
  CommandLine(const MicroVmSpecification& machine, const MicroVmPlaces& places)
      : machine_(machine), places_(places), arguments_{places.program} {}

  std::vector<std::string> build() {
    add_process();
    add_machine();
    add_sockets();
    add_image();
    for (std::size_t i = 0; i < machine_.disks.size(); ++i) add_disk(i);
    if (machine_.network) add_network();
    if (places_.incoming) add("-incoming", "defer");
    return std::move(arguments_);
  }

 private:
  void add(std::string option) { arguments_.push_back(std::move(option)); }
  void add(std::string option, std::string value) {
    arguments_.push_back(std::move(option));
    arguments_.push_back(std::move(value));
  }
  void add_device(const Json& device) { add("-device", device.dump()); }
  std::string in(std::string_view name) const {
    return fmt::format("{}/{}", places_.directory, name);
  }
  void add_socket(std::string_view id, std::string_view name) {
    add("-chardev", fmt::format("socket,id={},path={},server=on,wait=off", id, escaped(in(name))));
  }

  void add_process() {
    add("-name", fmt::format("guest={},debug-threads=on", escaped(machine_.name)));
    for (const char* option : {"-no-user-config", "-nodefaults", "-no-reboot"}) add(option);
    add("-display", "none");
    add("-msg", "timestamp=on");
    add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
  }

  void add_machine() {
    add("-machine", fmt::format("{},memory-backend=ram,dump-guest-core=off", machine_type));
    add("-accel", places_.kvm ? std::string("kvm")
                              : fmt::format("tcg,thread=multi,tb-size={}",
                                            machine::tcg_code_bytes_max / MiB));
    add("-cpu", fmt::format("{},enforce", machine::cpu_model_default));
    add("-smp", fmt::format("{}", machine_.cpus));
    add("-m", fmt::format("{}M", machine_.memory / MiB));
    add("-object", Json{{"qom-type", "memory-backend-file"},
                        {"id", "ram"},
                        {"size", machine_.memory},
                        {"mem-path", places_.memory_file},
                        {"share", true},
                        {"prealloc", false}}
                       .dump());
    add("-uuid", machine_.id.to_string());
    add("-rtc", "base=utc,clock=host");
    if (places_.kernel.empty()) return;
    add("-kernel", places_.kernel);
    add("-initrd", places_.initrd);
    add("-append", places_.tsc_khz == 0
                       ? std::string(command_line)
                       : fmt::format("{} tsc_early_khz={}", command_line, places_.tsc_khz));
  }

  void add_sockets() {
    add_socket("qmp", machine::qmp_socket_name);
    add("-mon", "chardev=qmp,mode=control");
    add("-chardev",
        fmt::format("file,id=console,path={},append=on", escaped(in(machine::console_log_name))));
    add("-serial", "chardev:console");
    add_device({{"driver", "virtio-serial-pci"}, {"id", "virtio-serial"}});
    add_socket("agent", machine::agent_socket_name);
    add_device({{"driver", "virtserialport"},
                {"bus", "virtio-serial.0"},
                {"chardev", "agent"},
                {"name", agent::port_name}});
    add("-object", R"({"qom-type":"rng-builtin","id":"random-source"})");
    add_device({{"driver", "virtio-rng-pci"}, {"rng", "random-source"}});
  }

  /// Passed as an open file: it lies where QEMU's user cannot get.
  void add_image() {
    add("-add-fd", fmt::format("fd={},set=1", places_.image_fd));
    add("-blockdev", Json{{"driver", "file"},
                          {"node-name", "image"},
                          {"filename", "/dev/fdset/1"},
                          {"read-only", true},
                          {"locking", "off"}}
                         .dump());
    add_device({{"driver", "virtio-blk-pci"}, {"drive", "image"}, {"serial", "berth-image"}});
  }

  void add_disk(std::size_t index) {
    const machine::AttachedDisk& disk = machine_.disks[index];
    add("-blockdev", machine::blockdev_add_arguments(disk).dump());
    const bool is_overlay = disk.node == machine_.overlay;
    const std::size_t mounts_before = machine_.overlay.empty() ? 0 : 1;
    add_device({{"driver", "virtio-blk-pci"},
                {"id", disk.node},
                {"drive", disk.node},
                {"serial", is_overlay ? "berth-overlay" : mount_serial(index - mounts_before)},
                {"rerror", "stop"},
                {"werror", "stop"}});
  }

  void add_network() {
    add("-netdev", "user,id=net");
    add_device({{"driver", "virtio-net-pci"},
                {"netdev", "net"},
                {"mac", microvm_mac(machine_.id)},
                {"romfile", ""}});
  }

  const MicroVmSpecification& machine_;
  const MicroVmPlaces& places_;
  std::vector<std::string> arguments_;
};

}  // namespace

std::string mount_serial(std::size_t index) { return fmt::format("berth-mount-{}", index); }

std::string microvm_mac(const Id128& id) {
  const auto byte = [&id](std::size_t i) { return std::to_integer<unsigned>(id.bytes[i]); };
  return fmt::format("52:54:00:{:02x}:{:02x}:{:02x}", byte(13), byte(14), byte(15));
}

std::vector<std::string> microvm_command(const MicroVmSpecification& specification,
                                         const MicroVmPlaces& places) {
  return CommandLine(specification, places).build();
}

}  // namespace berth::container
