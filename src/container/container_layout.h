// Where the keeper of a container has what (docs/formats/containers.md). Pure.
#pragma once

#include <string>
#include <string_view>

#include <fmt/format.h>

#include "base/ids.h"

namespace berth::container {

/// Of one run of a container. By ids: containers of the same name may run on one host, in state
/// directories of their own, it may get its name later, and of an earlier run somebody may still be
/// taking the group away.
inline std::string container_control_group(const Id128& container, const Id128& run) {
  constexpr std::size_t digits = 8;
  return fmt::format("container-{}-{}", container.to_string().substr(0, digits),
                     run.to_string().substr(0, digits));
}

struct ContainerRunLayout {
  std::string run_dir;

  std::string containers() const { return run_dir + "/containers"; }
  std::string container(std::string_view name) const {
    return fmt::format("{}/{}", containers(), name);
  }
  std::string control_socket(std::string_view name) const { return container(name) + "/control"; }
  std::string attach_socket(std::string_view name) const { return container(name) + "/attach"; }
  std::string lock_file(std::string_view name) const { return container(name) + "/lock"; }
  std::string keeper_log(std::string_view name) const { return container(name) + "/keeper.log"; }
  std::string qemu_log(std::string_view name) const { return container(name) + "/qemu.log"; }
  std::string launch_file(std::string_view name) const { return container(name) + "/launch.json"; }
  std::string pause_file(std::string_view name) const { return container(name) + "/pause.json"; }
  std::string cursor(std::string_view name) const { return container(name) + "/cursor"; }

  std::string microvms() const { return run_dir + "/microvms"; }
  /// A directory of the user that this QEMU runs as; it is not called as its container, which may
  /// come later.
  std::string qemu_directory(std::string_view id) const {
    return fmt::format("{}/{}", microvms(), id);
  }

  std::string sandboxes() const { return run_dir + "/sandboxes"; }
  /// Of a container in the host's kernel: its bundle and runc's state, by the id of its run.
  std::string sandbox(std::string_view id) const { return fmt::format("{}/{}", sandboxes(), id); }
};

}  // namespace berth::container
