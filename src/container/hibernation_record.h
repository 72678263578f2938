// A container that is hibernated: what it goes on from, in its directory
// (docs/formats/containers.md, "Hibernated"). hibernation.json is written last, and is gone before
// the container runs again: where it is, the rest is whole, and nothing has run since.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "container/container_record.h"
#include "machine/vm/pause_record.h"

namespace berth::container {

struct HibernationRecord {
  std::string image;      // path of the file system that its root is
  std::string template_;  // path of the memory object that its own memory differs from; "": zeros
  std::string qemu;       // the version that saved it
  std::string accelerator;
  std::uint64_t memory = 0;  // bytes, the guest's
  std::string pages;         // the name of its page file
  std::string devices;       // of the state of its devices
  std::uint64_t device_checksum = 0;
  std::string started_at;
  std::string log_begins_at;
  std::array<std::uint64_t, 2> log_positions{};  // of both its streams
  std::vector<PublishedPort> ports;              // where they really are
  machine::PauseRecord pause;
};

/// DIRECTORY/hibernation.json, of a container's directory.
std::string hibernation_file(std::string_view directory);

Json encode(const HibernationRecord& record);
/// `corrupt`, or `unsupported` for another version.
Result<HibernationRecord> decode_hibernation_record(std::string_view text);

// --- Files. Blocking.

bool is_hibernated(std::string_view directory);
/// `not_found` for one that is not.
Result<HibernationRecord> read_hibernation(const std::string& directory);
/// Durable, as `devices` are before.
Result<void> write_hibernation(const std::string& directory, HibernationRecord record,
                               std::string_view devices);
/// The state of its devices, path; `corrupt` where that is not what was saved.
Result<std::string> saved_devices(const std::string& directory, const HibernationRecord& record);
/// Durable: it can run. What it goes on from is still there.
Result<void> end_hibernation(const std::string& directory);
/// What saved its devices: of one that has gone on, or is not to.
void remove_saved_devices(const std::string& directory);

}  // namespace berth::container
