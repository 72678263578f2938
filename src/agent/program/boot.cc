#include "agent/program/boot.h"

#include <cerrno>
#include <chrono>
#include <thread>

#include <fcntl.h>
#if defined(__x86_64__)
#include <sys/io.h>
#endif
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/program/disks.h"
#include "agent/program/network.h"
#include "agent/program/small_files.h"

namespace berth::agent {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds device_wait_max{5000};
constexpr milliseconds device_interval{5};
constexpr unsigned long plain = MS_NOSUID | MS_NODEV | MS_NOEXEC;

Result<void> mount_at(const char* source, const std::string& target, const char* type,
                      unsigned long flags, const std::string& options = "") {
  // What an image lacks is made in the overlay; what is there already is good.
  ::mkdir(target.c_str(), 0755);
  if (::mount(source, target.c_str(), type, flags, options.c_str()) != 0) {
    return errno_failure(errno, std::string("cannot mount ") + type + " on " + target);
  }
  return {};
}

/// What find() finds, as soon as it finds anything; "" after device_wait_max.
template <typename Find>
std::string wait_for(Find find) {
  const auto deadline = std::chrono::steady_clock::now() + device_wait_max;
  while (true) {
    std::string found = find();
    if (!found.empty() || std::chrono::steady_clock::now() > deadline) return found;
    std::this_thread::sleep_for(device_interval);
  }
}

Result<void> load_module(const std::string& path) {
  const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return errno_failure(errno, "cannot open " + path);
  if (::syscall(SYS_finit_module, file.get(), "", 0) != 0 && errno != EEXIST) {
    return errno_failure(errno, "cannot load " + path);
  }
  return {};
}

Result<void> mount_image(Fd& overlay_handle) {
  const std::string image = wait_for([] { return find_disk(image_serial); });
  if (image.empty()) {
    return failure(ErrorKind::not_found,
                   std::string("there is no disk with the serial number ") + image_serial);
  }
  TRY(mount_at(image.c_str(), "/image", "erofs", MS_RDONLY));
  // All disks were there by the time that the driver had been loaded.
  const std::string overlay = find_disk(overlay_serial);
  if (overlay.empty()) {
    TRY(mount_at("overlay", "/overlay", "tmpfs", 0, "mode=0755"));
  } else {
    TRY(mount_at(overlay.c_str(), "/overlay", "ext4", MS_NOATIME));
  }
  overlay_handle = Fd(::open("/overlay", O_PATH | O_DIRECTORY | O_CLOEXEC));
  ::mkdir("/overlay/upper", 0755);
  ::mkdir("/overlay/work", 0755);
  return mount_at("overlay", "/root", "overlay", 0,
                  "lowerdir=/image,upperdir=/overlay/upper,workdir=/overlay/work");
}

Result<void> move_mount(const std::string& from, const std::string& to) {
  ::mkdir(to.c_str(), 0755);
  if (::mount(from.c_str(), to.c_str(), nullptr, MS_MOVE, nullptr) != 0) {
    return errno_failure(errno, "cannot move " + from + " to " + to);
  }
  return {};
}

/// The PC's interval timer (Intel 8254) goes on from the firmware at 18 Hz for ever where Linux
/// does not take it over, which wakes an idle guest's QEMU 36 times a second. As Linux stops it
/// where it does (pit_shutdown()): one count, and no more.
void stop_interval_timer() {
#if defined(__x86_64__)
  constexpr unsigned short counter = 0x40;
  constexpr unsigned short mode = 0x43;
  constexpr unsigned char count_once = 0x30;
  const std::string events = "/sys/devices/system/clockevents/";
  const bool is_used = read_line(events + "clockevent0/current_device").starts_with("pit") ||
                       read_line(events + "broadcast/current_device").starts_with("pit");
  if (is_used || ::ioperm(counter, mode - counter + 1, 1) != 0) return;
  ::outb(count_once, mode);
  ::outb(0, counter);
  ::outb(0, counter);
  (void)::ioperm(counter, mode - counter + 1, 0);
#endif
}

Result<void> mount_for_container() {
  TRY(mount_at("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
               "gid=5,mode=0620,ptmxmode=0666"));
  TRY(mount_at("shm", "/dev/shm", "tmpfs", plain, "mode=1777"));
  TRY(mount_at("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755"));
  // Of use to some, missed by none.
  (void)mount_at("mqueue", "/dev/mqueue", "mqueue", plain);
  (void)mount_at("cgroup2", "/sys/fs/cgroup", "cgroup2", plain);
  for (const auto& [target, name] : {std::pair{"/proc/self/fd", "/dev/fd"},
                                     {"/proc/self/fd/0", "/dev/stdin"},
                                     {"/proc/self/fd/1", "/dev/stdout"},
                                     {"/proc/self/fd/2", "/dev/stderr"}}) {
    (void)::symlink(target, name);
  }
  return {};
}

}  // namespace

Result<void> mount_kernel_file_systems() {
  TRY(mount_at("devtmpfs", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755"));
  int console = ::open("/dev/console", O_RDWR | O_NOCTTY);
  // Nothing else may ever have these numbers.
  if (console < 0) console = ::open("/dev/null", O_RDWR);
  if (console >= 0) {
    for (const int fd : {0, 1, 2}) {
      if (console != fd) ::dup2(console, fd);
    }
    if (console > 2) ::close(console);
  }
  TRY(mount_at("proc", "/proc", "proc", plain));
  return mount_at("sysfs", "/sys", "sysfs", plain);
}

Result<void> load_modules() {
  const std::string order = TRY(read_small_file("/modules/order"));
  Result<void> first;
  for (std::size_t begin = 0; begin < order.size();) {
    const std::size_t end = std::min(order.find('\n', begin), order.size());
    const std::string path = "/modules/" + order.substr(begin, end - begin);
    auto loaded = load_module(path);
    if (!loaded && first) first = std::move(loaded);
    ::unlink(path.c_str());  // the initramfs is memory
    begin = end + 1;
  }
  return first;
}

Result<Fd> open_port(const std::string& name) {
  const std::string ports = "/sys/class/virtio-ports/";
  const std::string device = wait_for([&]() -> std::string {
    for (const std::string& port : names_in(ports)) {
      std::string of_name = ports;
      of_name.append(port).append("/name");
      if (read_line(of_name) == name) return "/dev/" + port;
    }
    return {};
  });
  if (device.empty()) return failure(ErrorKind::not_found, "there is no virtio port " + name);
  Fd port(::open(device.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY));
  if (!port) return errno_failure(errno, "cannot open " + device);
  return port;
}

Result<void> enter_image(Fd& overlay) {
  TRY(mount_image(overlay));
  for (const char* name : {"/dev", "/proc", "/sys"}) {
    TRY(move_mount(name, std::string("/root") + name));
  }
  ::unlink("/init");
  if (::chdir("/root") != 0) return errno_failure(errno, "cannot change to /root");
  TRY(move_mount(".", "/"));
  if (::chroot(".") != 0 || ::chdir("/") != 0)
    return errno_failure(errno, "cannot change the root");
  return mount_for_container();
}

void leave_image(const Fd& overlay) {
  ::sync();
  constexpr unsigned long read_only = MS_REMOUNT | MS_RDONLY;
  ::mount(nullptr, "/", nullptr, read_only, nullptr);
  const std::string below = "/proc/self/fd/" + std::to_string(overlay.get());
  if (overlay) ::mount(nullptr, below.c_str(), nullptr, read_only, nullptr);
  ::sync();
}

Result<void> prepare_kernel() {
  stop_interval_timer();
  // Where memory is short, the workload goes, and not its init, whose end is a panic.
  TRY(write_setting("/proc/self/oom_score_adj", "-1000"));
  const rlimit files{.rlim_cur = 1024, .rlim_max = 524288};
  if (::setrlimit(RLIMIT_NOFILE, &files) != 0) {
    return errno_failure(errno, "cannot set how many files may be open");
  }
  return set_interface_up("lo");
}

}  // namespace berth::agent
