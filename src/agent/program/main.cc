// berth-agent: PID 1 of a container's microVM. Static, and alone in its initramfs: it brings the
// guest into its image and then does what the host asks of it (docs/formats/container-agent.md).
//
// It never ends by itself: its last step is to power the guest off.
//
// With --in-container it is PID 1 of a container in the host's kernel, which others have set up:
// it listens at descriptor 3, and ends in place of powering off.

#include <cstdio>
#include <string_view>

#include <linux/close_range.h>
#include <sched.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <unistd.h>

#include "agent/program/boot.h"
#include "agent/program/server.h"

namespace berth::agent {
namespace {

void say(const std::string& what) { std::fprintf(stderr, "berth-agent: %s\n", what.c_str()); }

constexpr int container_listener = 3;

[[noreturn]] void power_off(const Fd& overlay) {
  leave_image(overlay);
  ::reboot(RB_POWER_OFF);
  // It does not return to who may call it.
  while (true) ::pause();
}

/// What went wrong on the way, if anything did; the host is told.
Result<void> enter_guest(Fd& overlay) {
  TRY(enter_image(overlay));
  return prepare_kernel();
}

/// Whatever the workload does with the CPUs, the host is answered; sched(7). What the agent starts
/// is like anybody.
void go_first() {
  const sched_param none{};
  ::sched_setscheduler(0, SCHED_OTHER | SCHED_RESET_ON_FORK, &none);
  ::setpriority(PRIO_PROCESS, 0, -20);
}

[[noreturn]] void live() {
  ::reboot(RB_DISABLE_CAD);
  go_first();
  auto mounted = mount_kernel_file_systems();
  auto loaded = load_modules();
  auto port = open_port(port_name);
  Fd overlay;
  auto entered = enter_guest(overlay);
  std::string boot_error;
  for (const auto* step : {&mounted, &loaded, &entered}) {
    if (!*step && boot_error.empty()) boot_error = step->error().message();
  }
  if (!boot_error.empty()) say(boot_error);
  if (!port) {
    say(port.error().message());
    power_off(overlay);
  }
  auto loop = EventLoop::create();
  if (loop) {
    Server server(*loop, std::move(*port), boot_error);
    server.run();
  }
  power_off(overlay);
}

[[noreturn]] void live_in_container() {
  // What it was started with is nobody else's.
  ::close_range(container_listener, ~0U, CLOSE_RANGE_CLOEXEC);
  auto loop = EventLoop::create();
  if (!loop) {
    say(loop.error().message());
    ::_exit(1);
  }
  Server server(*loop, Server::Listener{Fd(container_listener)});
  server.run();
  ::_exit(0);
}

}  // namespace
}  // namespace berth::agent

int main(int argc, char** argv) {
  if (::getpid() != 1) {
    std::fputs("berth-agent: this is the init of a container, and of use nowhere else\n", stderr);
    return 2;
  }
  if (argc == 2 && std::string_view(argv[1]) == "--in-container") berth::agent::live_in_container();
  berth::agent::live();
}
