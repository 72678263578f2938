// A container that is hibernated: what it goes on from, in its directory
// (docs/formats/containers.md, "Hibernated").
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "container/container_record.h"
#include "machine/vm/hibernation.h"

namespace berth::container {

struct HibernationRecord {
  std::string image;      // path of the file system that its root is
  std::string template_;  // path of the memory object that its own memory differs from; "": zeros
  machine::SavedGuestState saved;
  std::string started_at;
  std::string log_begins_at;
  std::array<std::uint64_t, 2> log_positions{};  // of both its streams
  std::vector<PublishedPort> ports;              // where they really are
};

Json encode(const HibernationRecord& record);
/// `corrupt`, or `unsupported` for another version.
Result<HibernationRecord> decode_hibernation_record(std::string_view text);

// --- Files (machine/vm/hibernation.h). Blocking.

using machine::is_hibernated;
/// `not_found` for one that is not.
Result<HibernationRecord> read_hibernation(const std::string& directory);
/// Durable, as `devices` are before.
Result<void> write_hibernation(const std::string& directory, HibernationRecord record,
                               std::string_view devices);

}  // namespace berth::container
