#include "machine/vm/qemu_arguments.h"

#include <fmt/format.h>

#include "base/units.h"
#include "machine/vm/qemu_command.h"

namespace berth::machine {

std::string escaped_for_qemu(std::string_view value) {
  std::string text;
  for (const char c : value) {
    text += c;
    if (c == ',') text += ',';
  }
  return text;
}

void QemuArguments::add_process(std::string_view guest) {
  add("-name", fmt::format("guest={},debug-threads=on", escaped_for_qemu(guest)));
  add("-no-user-config");
  add("-nodefaults");
  add("-msg", "timestamp=on");
  add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
}

void QemuArguments::add_accelerator(bool kvm, std::uint64_t tcg_code_bytes) {
  add("-accel", kvm ? "kvm" : fmt::format("tcg,thread=multi,tb-size={}", tcg_code_bytes / MiB));
}

void QemuArguments::add_memory(std::uint64_t bytes, std::string_view path) {
  add("-m", fmt::format("{}M", bytes / MiB));
  add("-object", Json{{"qom-type", "memory-backend-file"},
                      {"id", "ram"},
                      {"size", bytes},
                      {"mem-path", path},
                      {"share", true},
                      {"prealloc", false}}
                     .dump());
}

void QemuArguments::add_socket(std::string_view id, std::string_view path, std::string_view more) {
  add("-chardev",
      fmt::format("socket,id={},path={},server=on,wait=off{}", id, escaped_for_qemu(path), more));
}

void QemuArguments::add_monitor(std::string_view path) {
  add_socket("qmp", path);
  add("-mon", "chardev=qmp,mode=control");
}

}  // namespace berth::machine
