// Where things are: the paths below a state directory and a run directory, and the names in them.
// Pure; no I/O.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace berth::machine {

constexpr std::size_t volume_name_length_max = 64;   // also of a keeper's id, bytes
constexpr std::size_t socket_path_length_max = 107;  // sockaddr_un, without its terminating zero

/// Whether `name` may be a volume's name or a keeper's id: [A-Za-z0-9][A-Za-z0-9._-]{0,63}.
bool is_valid_name(std::string_view name);

/// invalid_argument unless it is; `what` is for the message ("volume").
Result<void> check_name(std::string_view what, std::string_view name);

/// The same characters, up to disk::name_length_max bytes: names of new checkpoints and reference
/// points.
Result<void> check_point_name(std::string_view what, std::string_view name);

/// invalid_argument unless it is an absolute path that a UNIX socket's address can hold.
Result<void> check_socket_path(std::string_view path);

struct StateLayout {
  std::string state_dir;

  std::string volumes() const { return state_dir + "/volumes"; }
  std::string volume(std::string_view name) const;

  std::string machines() const { return state_dir + "/machines"; }
  std::string machine(std::string_view name) const;  // a directory; machine_store.h
  std::string machine_disk(std::string_view name, std::string_view disk) const;
};

struct RunLayout {
  std::string run_dir;

  std::string keepers() const { return run_dir + "/keepers"; }
  std::string keeper(std::string_view id) const;          // a directory
  std::string control_socket(std::string_view id) const;  // docs/formats/keeper-control.md
  std::string serve_file(std::string_view id) const;      // the listeners to serve again
  std::string lock_file(std::string_view id) const;       // flock: one keeper per id
  std::string live() const { return run_dir + "/live"; }  // live maps, if it is on a tmpfs
  std::string volumes() const { return run_dir + "/volumes"; }
  /// Where the keeper of an open volume serves its checkpoints to other keepers.
  std::string volume_socket(std::string_view volume) const;

  std::string machines() const { return run_dir + "/machines"; }
  std::string machine(std::string_view name) const;  // a directory; the machine's keeper's
  std::string machine_control_socket(std::string_view name) const;
  std::string machine_lock_file(std::string_view name) const;
  /// A directory of the user that the machine's QEMU runs as: what QEMU serves and what it reads.
  std::string machine_qemu_directory(std::string_view name) const;
};

}  // namespace berth::machine
