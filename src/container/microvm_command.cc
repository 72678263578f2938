#include "container/microvm_command.h"

#include <utility>

#include <fmt/format.h>

#include "agent/protocol.h"
#include "container/guest_network.h"
#include "machine/vm/qemu_arguments.h"

namespace berth::container {
namespace {

using machine::Json;

// Without pit Linux calibrates the CPU's clock against a timer that is disturbed on a busy host.
constexpr const char* machine_type = "microvm,acpi=on,pcie=on,pit=on,pic=on,rtc=on";
// A panic ends the guest (reboot at once, which QEMU takes for an end). Mitigations are against
// others in the same guest, and a container is alone in its own. The kernel's own tests of its
// ciphers take 0.2 s of an emulated CPU.
constexpr const char* command_line =
    "console=ttyS0 quiet panic=-1 reboot=t mitigations=off no_timer_check cryptomgr.notests";

class CommandLine : private machine::QemuArguments {
 public:
  CommandLine(const MicroVmSpecification& machine, const MicroVmPlaces& places)
      : QemuArguments(places.program), machine_(machine), places_(places) {}

  std::vector<std::string> build() {
    add_process(machine_.name);
    add("-no-reboot");
    add("-display", "none");
    add_machine();
    add_sockets();
    add_image();
    for (std::size_t i = 0; i < machine_.disks.size(); ++i) add_disk(i);
    if (machine_.network) add_network();
    if (places_.incoming) add("-incoming", "defer");
    return take();
  }

 private:
  std::string in(std::string_view name) const {
    return fmt::format("{}/{}", places_.directory, name);
  }
  void add_machine() {
    add("-machine", fmt::format("{},memory-backend=ram,dump-guest-core=off", machine_type));
    add_accelerator(places_.kvm, microvm_tcg_code_bytes_max);
    add("-cpu", fmt::format("{},enforce", machine::cpu_model_default));
    add("-smp", fmt::format("{}", machine_.cpus));
    add_memory(machine_.memory, places_.memory_file);
    add("-uuid", machine_.id.to_string());
    add("-rtc", "base=utc,clock=host");
    if (places_.kernel.empty()) return;
    add("-kernel", places_.kernel);
    add("-initrd", places_.initrd);
    // Linux checks it against its timer ticks, of which an emulated guest loses some on a busy
    // host; the time stamp counter is the one that is right.
    add("-append", places_.tsc_khz == 0 ? std::string(command_line)
                                        : fmt::format("{} tsc_early_khz={} tsc=reliable",
                                                      command_line, places_.tsc_khz));
  }

  /// To watch its queues for KVM, QEMU builds its memory anew whenever the CPUs stop or go on,
  /// which takes it 3 ms a device. An emulated CPU is in QEMU already.
  void add_virtio_device(Json device) {
    if (!places_.kvm) device["ioeventfd"] = false;
    add_device(std::move(device));
  }

  void add_sockets() {
    add_monitor(in(machine::qmp_socket_name));
    add("-chardev", fmt::format("file,id=console,path={},append=on",
                                machine::escaped_for_qemu(in(machine::console_log_name))));
    add("-serial", "chardev:console");
    add_virtio_device({{"driver", "virtio-serial-pci"}, {"id", "virtio-serial"}});
    add_socket("agent", in(machine::agent_socket_name));
    add_device({{"driver", "virtserialport"},
                {"bus", "virtio-serial.0"},
                {"chardev", "agent"},
                {"name", agent::port_name}});
    add("-object", R"({"qom-type":"rng-builtin","id":"random-source"})");
    add_virtio_device({{"driver", "virtio-rng-pci"}, {"rng", "random-source"}});
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
    add_virtio_device(
        {{"driver", "virtio-blk-pci"}, {"drive", "image"}, {"serial", "berth-image"}});
  }

  void add_disk(std::size_t index) {
    const machine::AttachedDisk& disk = machine_.disks[index];
    add("-blockdev", machine::blockdev_add_arguments(disk).dump());
    const bool is_overlay = disk.node == machine_.overlay;
    const std::size_t mounts_before = machine_.overlay.empty() ? 0 : 1;
    add_virtio_device(
        {{"driver", "virtio-blk-pci"},
         {"id", disk.node},
         {"drive", disk.node},
         {"serial", is_overlay ? "berth-overlay" : mount_serial(index - mounts_before)},
         {"rerror", "stop"},
         {"werror", "stop"}});
  }

  void add_network() {
    add("-netdev", guest_network::qemu_netdev("net"));
    add_virtio_device({{"driver", "virtio-net-pci"},
                       {"netdev", "net"},
                       {"mac", microvm_mac(machine_.id)},
                       {"romfile", ""}});
  }

  const MicroVmSpecification& machine_;
  const MicroVmPlaces& places_;
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
