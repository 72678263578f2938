// probes.h: CPU and accelerator.

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <linux/kvm.h>
#include <sched.h>
#include <sys/ioctl.h>

#include <fmt/format.h>

#include "base/fd.h"
#include "machine/host/host_text.h"
#include "machine/host/probes.h"

namespace berth::machine {
namespace {

constexpr const char* kvm_cost =
    "guests run under QEMU's emulation (TCG): correct, but several times slower";
constexpr int kvm_api_version = 12;  // of every kernel since 2.6.22

/// CPUs that this process may use.
unsigned usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  // More than a cpu_set_t's 1024: then the whole set counts.
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return CPU_SETSIZE;
  return static_cast<unsigned>(CPU_COUNT(&set));
}

Finding kvm_without_flag(const CpuInfo& cpu, bool device_opens) {
  // A device that opens proves nothing: it may even create a machine that never boots.
  return missing(
      device_opens ? "the CPU shows neither vmx nor svm; /dev/kvm opens, but boots nothing"
                   : "the CPU shows neither vmx nor svm",
      kvm_cost,
      cpu.hypervisor ? "Turn on nested virtualization for this machine, at its host or provider"
                     : "Turn on VT-x or AMD-V (SVM) in the firmware's setup");
}

Finding kvm_without_device(const CpuInfo& cpu, int error) {
  const char* flag = cpu.vmx ? "vmx" : "svm";
  if (error == EACCES || error == EPERM) {
    return missing(fmt::format("the CPU shows {}, but /dev/kvm may not be opened", flag), kvm_cost,
                   "Run as root, or be in the group kvm: usermod -aG kvm USER");
  }
  return missing(fmt::format("the CPU shows {}, but /dev/kvm: {}", flag, std::strerror(error)),
                 kvm_cost, fmt::format("modprobe {}", cpu.vmx ? "kvm_intel" : "kvm_amd"));
}

}  // namespace

Finding probe_cpus(const HostView& host) {
  const CpuInfo cpu = parse_cpuinfo(host.read("/proc/cpuinfo").value_or(""));
  if (cpu.processors == 0) {
    return unknown("/proc/cpuinfo names no processor", "not known", "Mount /proc");
  }
  const unsigned usable = std::min(usable_cpus(), cpu.processors);
  std::string detail =
      fmt::format("{} of {} CPUs usable{}{}{}", usable, cpu.processors,
                  cpu.model.empty() ? "" : ", ", cpu.model, cpu.hypervisor ? ", virtual" : "");
  if (usable > 1) return found(std::move(detail));
  return degraded(std::move(detail), "guests, keepers and the daemon take turns on one CPU",
                  "Give this machine a second CPU, or this process a larger CPU set");
}

Finding probe_kvm(const HostView& host) {
  const CpuInfo cpu = parse_cpuinfo(host.read("/proc/cpuinfo").value_or(""));
  if (!cpu.has_flags) {
    return unknown("/proc/cpuinfo shows no flags of an x86 CPU", kvm_cost,
                   "Use an x86-64 host with /proc mounted");
  }
  const Fd device(::open(host.path("/dev/kvm").c_str(), O_RDWR | O_CLOEXEC));
  const int error = errno;
  if (!cpu.vmx && !cpu.svm) return kvm_without_flag(cpu, static_cast<bool>(device));
  if (!device) return kvm_without_device(cpu, error);

  const int version = ::ioctl(device.get(), KVM_GET_API_VERSION, 0);
  const Fd machine(version == kvm_api_version ? ::ioctl(device.get(), KVM_CREATE_VM, 0) : -1);
  if (!machine) {
    return missing("/dev/kvm opens, but makes no virtual machine", kvm_cost,
                   "See dmesg for what KVM says; another hypervisor may have the CPU's extensions");
  }
  return found(fmt::format("{}, /dev/kvm makes machines{}", cpu.vmx ? "vmx" : "svm",
                           cpu.hypervisor ? "; nested: this is a virtual machine itself" : ""));
}

Finding probe_clock_source(const HostView& host) {
  constexpr const char* directory = "/sys/devices/system/clocksource/clocksource0";
  constexpr std::array<std::string_view, 6> slow = {"hpet",    "acpi_pm",         "pit",
                                                    "jiffies", "refined-jiffies", "xen"};
  const auto text = host.read(fmt::format("{}/current_clocksource", directory));
  const std::string current = chosen_word(text.value_or(""));
  if (current.empty()) {
    return unknown("the kernel does not name its clock source", "not known", "Mount /sys");
  }
  if (std::ranges::find(slow, current) == slow.end()) return found(current);
  const std::string available =
      chosen_word(host.read(fmt::format("{}/available_clocksource", directory)).value_or(""));
  return degraded(fmt::format("{} (available: {})", current, available),
                  "every look at the clock is a system call, and guests' clocks may drift",
                  "Boot with clocksource=tsc tsc=reliable if the TSC is sound; dmesg says why the "
                  "kernel left it");
}

}  // namespace berth::machine
