// The readers of specifications, from any bytes: as a vm.toml, and as JSON. What they take is
// allowed and comes back as it was; what they refuse is refused in one printable line.
//
// Input: the text.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "machine/vm/qemu_command.h"

namespace berth::machine {
namespace {

void check_taken(const MachineSpecification& specification) {
  MUST(check(specification));
  const Json json = MUST(parse_json(format_json(encode(specification))));
  CHECK(MUST(decode_machine(json)) == specification);

  MachineSpecification completed = specification;
  complete(completed, {});
  MUST(check(completed));
  for (const std::string& argument : qemu_command(completed, {}, {.directory = "/run/a"}))
    CHECK(!argument.contains('\0'));
}

void check_refused(const Error& error) {
  CHECK(error.kind() == ErrorKind::invalid_argument);
  const std::string message = error.message();
  CHECK(message.size() < 1024);
  CHECK(std::ranges::none_of(message, [](char c) { return (c >= 0 && c < ' ') || c == 0x7f; }));
}

void try_text(std::string_view text) {
  if (const auto parsed = parse_machine_toml(text, "vm.toml", "/srv"))
    check_taken(*parsed);
  else
    check_refused(parsed.error());

  const auto json = parse_json(text);
  if (!json) return;
  if (const auto decoded = decode_machine(*json))
    check_taken(*decoded);
  else
    check_refused(decoded.error());
}

}  // namespace
}  // namespace berth::machine

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  berth::machine::try_text({reinterpret_cast<const char*>(data), size});
  return 0;
}
