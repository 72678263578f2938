// What the parts of the reader of specifications share: where a mistake is, and the rules that hold
// of every specification. Inside machine/vm only; specification.h is what others use.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "machine/vm/specification.h"

namespace berth::machine {

/// A mistake: the first one found.
struct Misfit {
  std::string place;    // a JSON pointer of the documented keys: "/disk/1/size"; "" for the whole
  std::string message;  // "expected ..., found ..."
};

/// The keys of one table of a vm.toml; `name` is "" for those of the machine itself.
struct TableKeys {
  std::string_view name;
  std::span<const std::string_view> keys;
};
std::span<const TableKeys> machine_tables();

/// What breaks a rule, if something does. Every text may have any length and bytes.
std::optional<Misfit> find_misfit(const MachineSpecification& specification);

/// From the generic form of either language. Types and keys are checked, and then the rules. Paths
/// that are not absolute begin at `directory`, unless that is "".
struct Decoded {
  MachineSpecification specification;
  std::optional<Misfit> misfit;  // then the specification is of no use
};
Decoded decode_specification(const Json& json, std::string_view directory);

/// "[tcp:|udp:][ADDRESS:]HOST_PORT:GUEST_PORT"; nothing where `text` is something else.
std::optional<PortForward> parse_forward(std::string_view text);
/// "tcp:127.0.0.1:2222:22".
std::string format_forward(const PortForward& forward);

/// A value as it is shown in a message: short, printable.
std::string describe(const Json& value);
std::string describe_text(std::string_view text);

/// "disk[1].size" for "/disk/1/size", "machine" for "".
std::string describe_place(std::string_view place);

}  // namespace berth::machine
