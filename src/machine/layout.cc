#include "machine/layout.h"

#include <algorithm>

#include <fmt/format.h>

#include "disk/types.h"

namespace berth::machine {
namespace {

bool is_alphanumeric(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

bool is_name(std::string_view name, std::size_t length_max) {
  if (name.empty() || name.size() > length_max || !is_alphanumeric(name.front())) return false;
  return std::ranges::all_of(
      name, [](char c) { return is_alphanumeric(c) || c == '.' || c == '_' || c == '-'; });
}

/// What of a refused name goes into a message.
std::string_view shown(std::string_view name) { return name.substr(0, 80); }

Result<void> check(std::string_view what, std::string_view name, std::size_t length_max) {
  if (is_name(name, length_max)) return {};
  return failure(
      ErrorKind::invalid_argument,
      fmt::format("'{}' cannot be the name of a {}: use up to {} letters, digits, '.', '_' "
                  "and '-', beginning with a letter or a digit",
                  shown(name), what, length_max));
}

}  // namespace

bool is_valid_name(std::string_view name) { return is_name(name, volume_name_length_max); }

Result<void> check_name(std::string_view what, std::string_view name) {
  return check(what, name, volume_name_length_max);
}

Result<void> check_point_name(std::string_view what, std::string_view name) {
  return check(what, name, disk::name_length_max);
}

Result<void> check_socket_path(std::string_view path) {
  if (path.empty() || path.front() != '/' || path.contains('\0')) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is not a socket path: write an absolute one", shown(path)));
  }
  if (path.size() > socket_path_length_max) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("the socket path '{}' has {} bytes, and the kernel takes at most {}",
                               path, path.size(), socket_path_length_max));
  }
  return {};
}

std::string StateLayout::volume(std::string_view name) const {
  return fmt::format("{}/volumes/{}", state_dir, name);
}

std::string StateLayout::machine(std::string_view name) const {
  return fmt::format("{}/machines/{}", state_dir, name);
}
std::string StateLayout::machine_disk(std::string_view name, std::string_view disk) const {
  return fmt::format("{}/disks/{}", machine(name), disk);
}

std::string RunLayout::keeper(std::string_view id) const {
  return fmt::format("{}/keepers/{}", run_dir, id);
}
std::string RunLayout::control_socket(std::string_view id) const { return keeper(id) + "/control"; }
std::string RunLayout::serve_file(std::string_view id) const { return keeper(id) + "/serve.json"; }
std::string RunLayout::lock_file(std::string_view id) const { return keeper(id) + "/lock"; }
std::string RunLayout::volume_socket(std::string_view volume) const {
  return fmt::format("{}/volumes/{}.nbd", run_dir, volume);
}

std::string RunLayout::machine(std::string_view name) const {
  return fmt::format("{}/machines/{}", run_dir, name);
}
std::string RunLayout::machine_control_socket(std::string_view name) const {
  return machine(name) + "/control";
}
std::string RunLayout::machine_lock_file(std::string_view name) const {
  return machine(name) + "/lock";
}
std::string RunLayout::machine_qemu_directory(std::string_view name) const {
  return machine(name) + "/q";
}

}  // namespace berth::machine
