#include "agent/program/identity.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <ctime>

#include <fcntl.h>
#include <linux/random.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "agent/program/network.h"

namespace berth::agent {
namespace {

constexpr std::uint64_t nanoseconds = 1'000'000'000;  // in a second
constexpr std::size_t machine_id_size = 32;           // machine-id(5): hexadecimal digits

/// Those that the agent writes.
struct OwnFiles {
  OwnFile hostname{"/etc/hostname", 0644};
  OwnFile machine_id{"/etc/machine-id", 0444};
  OwnFile hosts{"/etc/hosts", 0644};
  OwnFile resolver{"/etc/resolv.conf", 0644};
};

OwnFiles& own_files() {
  static OwnFiles files;
  return files;
}

/// random(4): credited, and at once in the generator that getrandom(2) uses.
Result<void> add_entropy(Bytes entropy) {
  if (entropy.size() > entropy_max) {
    return failure(ErrorKind::limit,
                   "more than " + std::to_string(entropy_max) + " bytes of entropy");
  }
  // Open from the first time on, for the clones that come of us.
  static Fd random;
  if (!random) random = Fd(::open("/dev/urandom", O_RDWR | O_CLOEXEC));
  if (!random) return errno_failure(errno, "cannot open /dev/urandom");
  // struct rand_pool_info: bits, bytes, and the bytes.
  alignas(int) std::array<std::byte, 2 * sizeof(int) + entropy_max> pool{};
  const std::array<int, 2> sizes{static_cast<int>(entropy.size() * 8),
                                 static_cast<int>(entropy.size())};
  std::memcpy(pool.data(), sizes.data(), sizeof sizes);
  std::memcpy(pool.data() + sizeof sizes, entropy.data(), entropy.size());
  if (::ioctl(random.get(), RNDADDENTROPY, pool.data()) != 0 ||
      ::ioctl(random.get(), RNDRESEEDCRNG) != 0) {
    return errno_failure(errno, "cannot add entropy");
  }
  return {};
}

/// In a container it is what it is to be already, and may not be changed.
Result<void> set_hostname(const std::string& name, Readers readers) {
  utsname now{};
  const bool is_set = ::uname(&now) == 0 && name == now.nodename;
  if (!is_set && ::sethostname(name.data(), name.size()) != 0) {
    return errno_failure(errno, "cannot set the hostname '" + name + "'");
  }
  return own_files().hostname.write(name + "\n", readers);
}

Result<void> set_machine_id(const std::string& id, Readers readers) {
  if (id.size() != machine_id_size ||
      !std::ranges::all_of(id, [](unsigned char c) { return std::isxdigit(c) != 0; })) {
    return failure(ErrorKind::invalid_argument, "'" + id + "' is not a machine-id");
  }
  return own_files().machine_id.write(id + "\n", readers);
}

}  // namespace

Result<void> set_clock(const Fields& fields) {
  const std::uint64_t time_ns = TRY(fields.number(Tag::time_ns));
  const timespec time{.tv_sec = static_cast<time_t>(time_ns / nanoseconds),
                      .tv_nsec = static_cast<long>(time_ns % nanoseconds)};
  if (::clock_settime(CLOCK_REALTIME, &time) != 0)
    return errno_failure(errno, "cannot set the clock");
  return {};
}

Result<void> set_identity(const Fields& fields, Readers readers) {
  if (fields.has(Tag::entropy)) TRY(add_entropy(fields.raw(Tag::entropy)));
  if (fields.has(Tag::time_ns)) TRY(set_clock(fields));
  if (fields.has(Tag::hostname)) {
    const std::string name = TRY(fields.text(Tag::hostname));
    TRY(set_hostname(name, readers));
  }
  if (fields.has(Tag::machine_id)) {
    const std::string id = TRY(fields.text(Tag::machine_id));
    TRY(set_machine_id(id, readers));
  }
  return {};
}

Result<void> set_network(const Fields& fields, Readers readers) {
  if (fields.has(Tag::interface)) {
    const InterfaceSettings settings{
        .name = TRY(fields.text(Tag::interface)),
        .address = TRY(fields.text_or(Tag::address, "")),
        .gateway = TRY(fields.text_or(Tag::gateway, "")),
        .hardware_address = TRY(fields.text_or(Tag::hardware_address, ""))};
    TRY(set_interface(settings));
  }
  if (fields.has(Tag::hosts)) {
    TRY(own_files().hosts.write(as_text(fields.raw(Tag::hosts)), readers));
  }
  if (fields.has(Tag::resolver)) {
    TRY(own_files().resolver.write(as_text(fields.raw(Tag::resolver)), readers));
  }
  return {};
}

Result<void> rehearse_identity(const Fields& fields) {
  const std::string name = TRY(fields.text_or(Tag::hostname, ""));
  if (!name.empty()) TRY(own_files().hostname.write(name + "--\n", Readers::none));
  if (fields.has(Tag::hosts)) {
    const std::string hosts(as_text(fields.raw(Tag::hosts)));
    TRY(own_files().hosts.write(hosts + "#\n", Readers::none));
  }
  return {};
}

Result<void> configure(const Fields& fields) {
  if (fields.has(Tag::hostname)) {
    const std::string name = TRY(fields.text(Tag::hostname));
    TRY(set_hostname(name, Readers::maybe));
  }
  return set_network(fields);
}

}  // namespace berth::agent
