// The NoCloud seed of a machine: a small ISO image that tells cloud-init in the guest who it is.
//
// Blocking; no state. ISO 9660 with Rock Ridge and Joliet, labelled `cidata`, with the files
// user-data, meta-data and, where there is one, network-config. The same input gives the same
// bytes, on any day. Source: cloud-init's documentation, "NoCloud", "Source 2: drive with labeled
// filesystem".
#pragma once

#include <string>
#include <string_view>

#include "base/ids.h"
#include "base/result.h"
#include "machine/vm/specification.h"

namespace berth::machine {

/// What meta-data says where the specification does not: the instance is the machine's id, so that
/// a machine that is made anew is set up anew, and the host name is the machine's name.
std::string default_meta_data(std::string_view machine_name, const Id128& machine_id);

/// `path` is absolute. Durable, mode 0600 (user-data may hold secrets). already_exists if `path` is
/// there; after any error nothing of ours is.
Result<void> write_seed_image(const CloudInitSpecification& cloud_init,
                              std::string_view machine_name, const Id128& machine_id,
                              const std::string& path);

}  // namespace berth::machine
