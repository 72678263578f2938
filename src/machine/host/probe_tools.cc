// probes.h: QEMU and the tools beside it. Each is run, and says its version itself.

#include <algorithm>
#include <string>

#include <fmt/format.h>

#include "machine/host/host_text.h"
#include "machine/host/probes.h"
#include "machine/host/program.h"

namespace berth::machine {
namespace {

constexpr std::chrono::milliseconds patience{10'000};
constexpr Version oldest_qemu = {7, 2, 0};
constexpr const char* qemu_name = "qemu-system-x86_64";
constexpr const char* qemu_remedy = "apt-get install qemu-system-x86";
constexpr const char* image_cost = "no container image can be pulled or imported";
constexpr const char* qemu_cost = "no virtual machine and no container in a microVM can be started";

struct Tool {
  const char* name;
  Version oldest;
  const char* cost;
  const char* package;
};

Finding look_for(const Tool& tool) {
  const std::string remedy = fmt::format("apt-get install {}", tool.package);
  const std::string path = find_program(tool.name);
  if (path.empty()) return missing(fmt::format("no {} in PATH", tool.name), tool.cost, remedy);
  const auto said = run_program({path, "--version"}, patience);
  if (!said)
    return missing(fmt::format("{} --version: {}", path, said.error().message()), tool.cost,
                   remedy);
  const auto version = find_version(*said);
  if (!version) return unknown(fmt::format("{} says no version", path), tool.cost, remedy);
  std::string detail = fmt::format("{}, {}", to_string(*version), path);
  if (*version >= tool.oldest) return found(std::move(detail));
  return degraded(
      std::move(detail),
      fmt::format("older than {}, which is the oldest that is tested", to_string(tool.oldest)),
      remedy);
}

}  // namespace

Finding probe_qemu(const HostView& /*host*/) {
  return look_for({qemu_name, oldest_qemu, qemu_cost, "qemu-system-x86"});
}

Finding probe_qemu_accelerators(const HostView& /*host*/) {
  const std::string path = find_program(qemu_name);
  if (path.empty()) return missing("no QEMU to ask", qemu_cost, qemu_remedy);
  const auto said = run_program({path, "-accel", "help"}, patience);
  if (!said) {
    return unknown(fmt::format("{} -accel help: {}", path, said.error().message()), qemu_cost,
                   qemu_remedy);
  }
  const auto names = parse_accelerators(*said);
  const auto has = [&names](const char* name) {
    return std::ranges::find(names, name) != names.end();
  };
  std::string detail = fmt::format("{}", fmt::join(names, ", "));
  if (has("kvm") && has("tcg")) return found(std::move(detail));
  if (has("kvm")) {
    return degraded(std::move(detail), "no guest runs where there is no KVM",
                    "Use a QEMU that is built with tcg");
  }
  if (has("tcg")) {
    return degraded(std::move(detail), "guests are emulated even where there is KVM",
                    "Use a QEMU that is built with kvm");
  }
  return missing(names.empty() ? "it names none" : detail, qemu_cost, qemu_remedy);
}

Finding probe_qemu_nbd(const HostView& /*host*/) {
  return look_for({"qemu-nbd", oldest_qemu,
                   "no backing and no import of qcow2, vmdk, vhdx or vdi images: raw ones only",
                   "qemu-utils"});
}

Finding probe_qemu_img(const HostView& /*host*/) {
  return look_for(
      {"qemu-img", oldest_qemu, "images cannot be made or converted by hand", "qemu-utils"});
}

Finding probe_qemu_storage_daemon(const HostView& /*host*/) {
  return look_for({"qemu-storage-daemon", oldest_qemu, "nothing but the peer in benchmarks",
                   "qemu-system-common"});
}

Finding probe_nbdcopy(const HostView& /*host*/) {
  return look_for({"nbdcopy", {}, "volumes cannot be copied over NBD by hand", "libnbd-bin"});
}

Finding probe_nbdinfo(const HostView& /*host*/) {
  return look_for({"nbdinfo",
                   {},
                   "exports and their changed blocks cannot be looked at by hand",
                   "libnbd-bin"});
}

Finding probe_skopeo(const HostView& /*host*/) {
  return look_for({"skopeo", {}, image_cost, "skopeo"});
}

Finding probe_umoci(const HostView& /*host*/) {
  return look_for({"umoci", {}, image_cost, "umoci"});
}

Finding probe_runc(const HostView& /*host*/) {
  return look_for({"runc", {}, "no containers in the host's kernel (--isolation process)", "runc"});
}

Finding probe_slirp4netns(const HostView& /*host*/) {
  return look_for({"slirp4netns",
                   {},
                   "containers in the host's kernel have no network (--net none)",
                   "slirp4netns"});
}

Finding probe_mkfs_erofs(const HostView& /*host*/) {
  constexpr const char* remedy = "apt-get install erofs-utils";
  const std::string path = find_program("mkfs.erofs");
  if (path.empty()) return missing("no mkfs.erofs in PATH", image_cost, remedy);
  const auto said = run_program({path, "--help"}, patience);  // 1.5 fails where it says its version
  if (said) return found(path);
  return missing(fmt::format("{} --help: {}", path, said.error().message()), image_cost, remedy);
}

}  // namespace berth::machine
