// The addresses that a guest's agent says its interfaces have.
//
// Pure. Nothing of it is trusted: addresses and MACs are ones, names are short and printable, and
// there is a limit to how many.
#pragma once

#include <string>
#include <vector>

#include "machine/control_protocol.h"

namespace berth::machine {

constexpr std::size_t guest_addresses_max = 256;  // more are left out

struct GuestAddress {
  std::string interface;
  std::string mac;      // lower case, with colons; "" if it has none
  std::string address;  // without prefix length
  unsigned prefix = 0;
  friend bool operator==(const GuestAddress&, const GuestAddress&) = default;
};

/// The global ones (not of loopback, not link-local) in an answer to guest-network-get-interfaces,
/// in its order. What makes no sense in it is left out; `protocol` if it is no such answer at all.
Result<std::vector<GuestAddress>> parse_guest_addresses(const Json& answer);

}  // namespace berth::machine
