#include "container/host_stamp.h"

#include <cerrno>
#include <chrono>

#include <sys/stat.h>

#include <fmt/format.h>

#include "container/microvm_command.h"
#include "machine/host/accelerator.h"
#include "machine/host/host_text.h"
#include "machine/host/program.h"
#include "machine/small_file.h"

namespace berth::container {
namespace {

constexpr std::chrono::seconds question_patience{10};
constexpr std::int64_t nanoseconds = 1'000'000'000;  // in a second

Result<std::string> qemu_version(const std::string& program) {
  const std::string text = TRY(machine::run_program({program, "--version"}, question_patience));
  // The package's too: its patches count.
  return text.substr(0, text.find('\n'));
}

std::string cpu_model() {
  const auto text = machine::read_small_file("/proc/cpuinfo");
  return text ? machine::parse_cpuinfo(*text).model : std::string();
}

}  // namespace

template <typename Look>
Result<std::string> HostStamp::remembered(const std::string& path, Look look) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0)
    return errno_failure(errno, fmt::format("cannot look at '{}'", path));
  const FileState state{.inode = status.st_ino,
                        .size = static_cast<std::uint64_t>(status.st_size),
                        .changed_ns = status.st_ctim.tv_sec * nanoseconds + status.st_ctim.tv_nsec};
  Known& known = known_[path];
  if (known.value.empty() || known.state != state) {
    known.value = TRY(look());
    known.state = state;
  }
  return known.value;
}

Result<TemplateStamp> HostStamp::now() {
  const std::lock_guard lock(mutex_);
  const std::string kernel = TRY(kernels_.current()).release;
  const std::string program = TRY(find_agent());
  const std::string initrd = TRY(remembered(program, [&] { return kernels_.initrd(kernel); }));
  const std::string qemu = MicroVmPlaces{}.program;
  const std::string version = TRY(remembered(qemu, [&] { return qemu_version(qemu); }));
  return TemplateStamp{
      .image = {},
      .kernel = kernel,
      .agent = initrd.substr(initrd.rfind('-') + 1),
      .qemu = version,
      .accelerator = machine::has_kvm() ? "kvm" : "tcg",
      .cpu = TRY(remembered("/proc/cpuinfo", []() -> Result<std::string> { return cpu_model(); }))};
}

}  // namespace berth::container
