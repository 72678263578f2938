// berth-agent: PID 1 of a container's microVM. Static, and alone in its initramfs: it brings the
// guest into its image and then does what the host asks of it (docs/formats/container-agent.md).
//
// It never ends by itself: its last step is to power the guest off.

#include <cstdio>

#include <sys/reboot.h>
#include <unistd.h>

#include "agent/program/boot.h"
#include "agent/program/server.h"

namespace berth::agent {
namespace {

void say(const std::string& what) { std::fprintf(stderr, "berth-agent: %s\n", what.c_str()); }

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

[[noreturn]] void live() {
  ::reboot(RB_DISABLE_CAD);
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

}  // namespace
}  // namespace berth::agent

int main() {
  if (::getpid() != 1) {
    std::fputs("berth-agent: this is the init of a microVM, and of use nowhere else\n", stderr);
    return 2;
  }
  berth::agent::live();
}
