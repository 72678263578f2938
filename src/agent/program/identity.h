// Who the guest is: `set_clock`, `set_identity`, `configure`. All of it can be said again at any
// time, as it is to a clone.
#pragma once

#include "agent/fields.h"
#include "agent/program/small_files.h"

namespace berth::agent {

Result<void> set_clock(const Fields& fields);
/// Entropy first: what comes after it may draw on it. Every field may be missing.
Result<void> set_identity(const Fields& fields, Readers readers = Readers::maybe);
/// The interface, `hosts` and `resolver`. Every field may be missing.
Result<void> set_network(const Fields& fields, Readers readers = Readers::maybe);
/// Longer words than `fields` has, into the files that both of the above write; both are to come
/// after it, and cut them.
Result<void> rehearse_identity(const Fields& fields);
/// The hostname, and the network. Every field may be missing.
Result<void> configure(const Fields& fields);

}  // namespace berth::agent
