#include "machine/host/host_swap.h"

#include <array>
#include <cerrno>
#include <chrono>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <sys/swap.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/fd.h"
#include "base/units.h"
#include "machine/host/program.h"

namespace berth::machine {
namespace {

constexpr const char* zram_control = "/sys/class/zram-control";
constexpr const char* zswap_switch = "/sys/module/zswap/parameters/enabled";
constexpr std::string_view our_label = "berth";
constexpr off_t label_offset = 1052;  // of the header's 16 bytes (mkswap(8), include/linux/swap.h)
constexpr int zram_priority = 100;    // before files
constexpr std::uint64_t area_size_min = MiB;
constexpr std::chrono::seconds program_patience{60};

Result<void> format_area(const std::string& path) {
  const std::string program = find_program("mkswap");
  if (program.empty())
    return failure(ErrorKind::unsupported, "there is no mkswap: install util-linux");
  TRY(run_program({program, "--label", std::string(our_label), path}, program_patience));
  return {};
}

Result<void> begin_area(const std::string& path, int priority) {
  const int flags =
      priority < 0 ? 0
                   : SWAP_FLAG_PREFER | (priority << SWAP_FLAG_PRIO_SHIFT & SWAP_FLAG_PRIO_MASK);
  if (::swapon(path.c_str(), flags) == 0) return {};
  if (errno == EINVAL) {
    return failure(ErrorKind::unsupported,
                   fmt::format("the kernel does not swap to '{}': its file system may not allow "
                               "that",
                               path));
  }
  return errno_failure(errno, fmt::format("cannot swap to '{}'", path));
}

Result<void> end_area(const std::string& path) {
  if (::swapoff(path.c_str()) == 0) return {};
  if (errno == ENOMEM) {
    return failure(ErrorKind::limit,
                   fmt::format("what is swapped out to '{}' does not fit into RAM: end, or park, "
                               "some of what runs",
                               path));
  }
  return errno_failure(errno, fmt::format("cannot stop swapping to '{}'", path));
}

Result<void> check_size(std::uint64_t bytes) {
  if (bytes >= area_size_min) return {};
  return failure(ErrorKind::invalid_argument,
                 fmt::format("swap of {} bytes: at least {}", bytes, format_size(area_size_min)));
}

}  // namespace

SwapCalls SwapCalls::of_this_host() {
  return {.format = format_area, .begin = begin_area, .end = end_area};
}

bool HostSwap::has_zram() const { return ::access(host_.path(zram_control).c_str(), F_OK) == 0; }

bool HostSwap::is_ours(const SwapArea& area) const {
  if (!area.zram()) return area.name == file();
  const Fd device(::open(host_.path(area.name).c_str(), O_RDONLY | O_CLOEXEC));
  std::array<char, our_label.size() + 1> label{};
  return device &&
         ::pread(device.get(), label.data(), label.size(), label_offset) ==
             static_cast<ssize_t>(label.size()) &&
         std::string_view(label.data(), label.size()) == std::string_view("berth\0", label.size());
}

HostSwap::Status HostSwap::status() const {
  Status status{.areas = {}, .has_zram = has_zram(), .zswap = "missing"};
  for (SwapArea& area : parse_swaps(host_.read("/proc/swaps").value_or(""))) {
    const bool ours = is_ours(area);
    status.areas.push_back({.area = std::move(area), .is_ours = ours});
  }
  if (const auto enabled = host_.read(zswap_switch))
    status.zswap = enabled->starts_with('Y') ? "on" : "off";
  return status;
}

Result<void> HostSwap::write(const std::string& absolute, const std::string& text) const {
  const std::string path = host_.path(absolute);
  const Fd to(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!to || ::write(to.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return errno_failure(errno, fmt::format("cannot write '{}' to '{}'", text, path));
  return {};
}

Result<void> HostSwap::add_zram(std::uint64_t bytes) const {
  TRY(check_size(bytes));
  if (!has_zram()) {
    if (const std::string load = find_program("modprobe"); !load.empty() && host_.root.empty())
      (void)run_program({load, "zram"}, program_patience);
  }
  if (!has_zram()) {
    return failure(ErrorKind::unsupported,
                   "this kernel has no zram (CONFIG_ZRAM, or its module): use a swap file");
  }
  const auto number = host_.read_number(fmt::format("{}/hot_add", zram_control));
  if (!number) return failure(ErrorKind::permission, "cannot add a zram device: that takes root");
  const std::string device = fmt::format("/dev/zram{}", *number);
  auto added = write(fmt::format("/sys/block/zram{}/disksize", *number), fmt::format("{}", bytes));
  if (added) added = calls_.format(device);
  if (added) added = calls_.begin(device, zram_priority);
  if (!added) (void)write(fmt::format("{}/hot_remove", zram_control), fmt::format("{}", *number));
  return added;
}

Result<void> HostSwap::add_file(std::uint64_t bytes) const {
  TRY(check_size(bytes));
  for (const Area& area : status().areas) {
    if (area.is_ours && !area.area.zram()) {
      return failure(ErrorKind::already_exists,
                     fmt::format("'{}' is in use: take it away first", file()));
    }
  }
  auto added = make_file(bytes);
  if (added) added = calls_.format(file());
  if (added) added = calls_.begin(file(), -1);
  if (!added) ::unlink(file().c_str());
  return added;
}

/// All of it allocated: the kernel swaps to no holes. One that is there is a host's that went down.
Result<void> HostSwap::make_file(std::uint64_t bytes) const {
  ::unlink(file().c_str());
  const Fd made(::open(file().c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  const int error = made ? ::posix_fallocate(made.get(), 0, static_cast<off_t>(bytes)) : errno;
  if (error != 0) {
    return errno_failure(error, fmt::format("cannot make a swap file of {}", format_size(bytes)));
  }
  return {};
}

Result<void> HostSwap::set_zswap(bool on) const {
  if (status().zswap == "missing") {
    return failure(ErrorKind::unsupported,
                   "this kernel has no zswap (CONFIG_ZSWAP): zram compresses too");
  }
  return write(zswap_switch, on ? "Y" : "N");
}

Result<void> HostSwap::undo() const {
  for (const Area& area : status().areas) {
    if (!area.is_ours) continue;
    const std::string& name = area.area.name;
    TRY(calls_.end(name));
    if (area.area.zram()) {
      TRY(write(fmt::format("{}/hot_remove", zram_control),
                name.substr(std::string_view("/dev/zram").size())));
    } else {
      ::unlink(name.c_str());
    }
  }
  return {};
}

}  // namespace berth::machine
