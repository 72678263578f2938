// A guest that is hibernated, a machine or a container: what it goes on from, in its directory, and
// the one file that decides whether it is.
//
//   DIRECTORY/pages-N               its memory (page_files.h)
//   DIRECTORY/hibernated-devices    the state of its devices
//   DIRECTORY/hibernation.json      what these are, and what else its kind of guest keeps
//
// hibernation.json is written last, and is gone before the guest runs again: where it is, the rest
// is whole, and nothing has run since.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include <sys/types.h>

#include "base/result.h"
#include "machine/control_protocol.h"
#include "machine/vm/pause_record.h"

namespace berth::machine {

/// Members of hibernation.json that every kind of guest has.
struct SavedGuestState {
  std::string qemu;  // the version that saved it
  std::string accelerator;
  std::uint64_t memory = 0;  // bytes, the guest's
  std::string pages;         // the name of its page file
  std::string devices;       // of the state of its devices
  std::uint64_t device_checksum = 0;
  PauseRecord pause;
  /// What its QEMU was made of (ProcessMaps::programs()).
  std::map<std::string, std::uint64_t> programs;
};

Json encode(const SavedGuestState& saved);
/// `invalid_argument`, also for names that lead out of the directory.
Result<SavedGuestState> decode_saved_guest_state(const Json& json);

/// For SavedGuestState; none where they cannot be known.
std::map<std::string, std::uint64_t> programs_of(pid_t process);

// --- Files. Blocking.

/// DIRECTORY/hibernation.json, of a guest's directory.
std::string hibernation_file(std::string_view directory);
bool is_hibernated(std::string_view directory);
/// Its document; `not_found` for one that is not.
Result<std::string> read_hibernation_file(const std::string& directory);
/// Durable; what describes them is put into `saved`.
Result<void> save_devices(const std::string& directory, std::string_view devices,
                          SavedGuestState& saved);
/// Durable: with that it is hibernated. Where it fails, what saved its devices goes.
Result<void> write_hibernation_file(const std::string& directory, const Json& document);
/// The state of its devices, path; `corrupt` where that is not what was saved.
Result<std::string> saved_devices(const std::string& directory, const SavedGuestState& saved);
/// Has the kernel read what the guest will need first when it goes on: this program, whose keeper
/// it gets, QEMU, and the memory that it came to first the last time. Does not wait, and leaves it
/// to others to find something wrong.
void read_ahead_saved(const std::string& directory);
/// Durable: it can run. What it goes on from is still there.
Result<void> end_hibernation(const std::string& directory);
/// What saved its devices: of one that has gone on, or is not to.
void remove_saved_devices(const std::string& directory);
/// What was saved of a guest, page files of a pause among it: of one whose QEMU is gone, and that
/// does not go on from it.
void remove_saved(const std::string& directory);
/// Durable: it never goes on from that, and nothing of it is left.
Result<void> discard_hibernation(const std::string& directory);

}  // namespace berth::machine
