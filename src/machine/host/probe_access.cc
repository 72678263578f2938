// probes.h: the run directory, who may use the API, and whether a daemon is there.

#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include <grp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/fd.h"
#include "machine/host/probes.h"
#include "machine/host/scratch_file.h"
#include "machine/layout.h"

namespace berth::machine {
namespace {

constexpr const char* group_name = "berth";

std::optional<gid_t> id_of_group(const char* name) {
  group entry{};
  group* found = nullptr;
  std::array<char, 16 * 1024> buffer{};
  if (::getgrnam_r(name, &entry, buffer.data(), buffer.size(), &found) != 0 || found == nullptr)
    return std::nullopt;
  return entry.gr_gid;
}

std::string name_of_group(gid_t id) {
  group entry{};
  group* found = nullptr;
  std::array<char, 16 * 1024> buffer{};
  if (::getgrgid_r(id, &entry, buffer.data(), buffer.size(), &found) != 0 || found == nullptr)
    return fmt::format("{}", id);
  return entry.gr_name;
}

/// 0 if somebody takes connections there, or why not, as errno.
int connect_error(const std::string& path) {
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  if (path.size() >= sizeof address.sun_path) return ENAMETOOLONG;
  std::memcpy(address.sun_path, path.data(), path.size());
  // Not blocking: a daemon whose queue is full is there.
  const Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return errno;
  if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return 0;
  return errno == EAGAIN ? 0 : errno;
}

}  // namespace

Finding probe_run_directory(const HostView& host) {
  constexpr const char* cost = "Berth does not work: its sockets lie there";
  constexpr const char* remedy = "Run as root, or: berth --run-dir DIR";
  const std::string longest =
      RunLayout{host.run_dir}.control_socket(std::string(volume_name_length_max, 'x'));
  const std::string place = existing_ancestor(host.run_dir);
  const auto file = make_scratch_file(place);
  if (!file) {
    return missing(fmt::format("{}: {}", place, std::strerror(file.error().errno_value())), cost,
                   remedy);
  }
  if (!check_socket_path(host.run_dir + "/api.sock"))
    return missing("its path is too long for sockets", cost, "Use a shorter --run-dir");
  std::string detail =
      place == host.run_dir
          ? fmt::format("{} takes files", place)
          : fmt::format("{} is not there yet; the daemon can make it", host.run_dir);
  if (check_socket_path(longest)) return found(std::move(detail));
  return degraded(std::move(detail) + "; a long path",
                  "sockets of volumes with long names do not fit into their addresses",
                  "Use a shorter --run-dir");
}

Finding probe_berth_group(const HostView& /*host*/) {
  const auto id = id_of_group(group_name);
  if (id) return found(fmt::format("group {} has id {}", group_name, *id));
  return missing("there is no such group", "the API's socket is root's alone",
                 "groupadd --system berth, and start the daemon anew; usermod -aG berth USER");
}

Finding probe_daemon(const HostView& host) {
  constexpr const char* cost = "no command but this one, and `volume check`, does anything";
  const std::string& path = host.api_socket;
  struct stat status{};
  if (::lstat(path.c_str(), &status) != 0) {
    return missing(fmt::format("{}: {}", path, std::strerror(errno)), cost,
                   "Start it: berth daemon");
  }
  const int error = connect_error(path);
  const std::string owner =
      fmt::format("mode {:o}, group {}", status.st_mode & 07777U, name_of_group(status.st_gid));
  if (error == EACCES || error == EPERM) {
    return degraded(fmt::format("{} is there, but not for this user ({})", path, owner), cost,
                    "Run as root, or be in that group: usermod -aG berth USER");
  }
  if (error != 0) {
    return missing(fmt::format("nobody answers at {}: {}", path, std::strerror(error)), cost,
                   "Start it: berth daemon (it takes the place of a socket that was left)");
  }
  const auto group = id_of_group(group_name);
  const bool for_group = !group || (status.st_gid == *group && (status.st_mode & 0777U) == 0660U);
  std::string detail = fmt::format("answers at {} ({})", path, owner);
  if (for_group) return found(std::move(detail));
  return degraded(std::move(detail), "its users in the group berth are kept out",
                  fmt::format("Start it anew, or: chgrp berth {0}; chmod 660 {0}", path));
}

}  // namespace berth::machine
