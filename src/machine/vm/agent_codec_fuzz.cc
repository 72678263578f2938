// What comes from a guest where its agent should answer, any bytes in pieces of any size: the
// request is sent after the token and not before, and what is taken for an answer is one.
//
// Input: a byte with the size of the pieces; a byte whose lowest bit is for a silent command, the
// next one for the agent's own synchronisation before all, so that the bytes are the answer; then
// the bytes.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "machine/vm/agent_codec.h"
#include "machine/vm/guest_addresses.h"

namespace berth::machine {
namespace {

constexpr std::uint64_t token = 7;
constexpr std::string_view synchronized = "\xff{\"return\": 7}\n";

bool is_printable(const std::string& text) {
  return std::ranges::none_of(text, [](char c) { return (c >= 0 && c < ' ') || c == '\x7f'; });
}

void check_answer(const Result<Json>& answer) {
  if (!answer) {
    CHECK(answer.error().kind() == ErrorKind::precondition);
    CHECK(is_printable(answer.error().message()) && answer.error().message().size() < 2048);
    return;
  }
  static_cast<void>(parse_agent_count(*answer));
  static_cast<void>(parse_agent_is_frozen(*answer));
  const auto addresses = parse_guest_addresses(*answer);
  if (!addresses) return;
  CHECK(addresses->size() <= guest_addresses_max);
  for (const GuestAddress& address : *addresses) {
    CHECK(is_printable(address.interface) && !address.interface.empty());
    CHECK(is_printable(address.address) && !address.address.empty());
    CHECK(is_printable(address.mac) && address.prefix <= 128);
  }
}

void run(std::size_t piece, bool is_silent, bool is_synchronized, Bytes input) {
  AgentExchange exchange(
      token, "guest-command", nullptr,
      is_silent ? AgentExchange::Success::silent : AgentExchange::Success::answered);
  CHECK(!exchange.take_output().empty());
  std::string seen;
  if (is_synchronized) {
    MUST(exchange.receive(as_bytes(synchronized)));
    CHECK(!exchange.take_output().empty() && exchange.has_asked());
  }
  while (!exchange.answer() && !input.empty()) {
    const Bytes part = input.first(std::min(piece, input.size()));
    input = input.subspan(part.size());
    seen += as_text(part);
    const auto received = exchange.receive(part);
    if (!received) {
      CHECK(received.error().kind() == ErrorKind::protocol ||
            received.error().kind() == ErrorKind::limit);
      CHECK(is_printable(received.error().message()));
      return;
    }
    const bool asks = !exchange.take_output().empty();
    // The token was there, behind a delimiter.
    if (asks) CHECK(!is_synchronized && seen.find('\xff') < seen.rfind('7'));
    CHECK(!exchange.answer() || exchange.has_asked());
  }
  if (exchange.answer()) check_answer(*exchange.answer());
}

}  // namespace
}  // namespace berth::machine

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const berth::Bytes input(reinterpret_cast<const std::byte*>(data), size);
  berth::machine::run(std::size_t{1} + data[0], (data[1] & 1U) != 0, (data[1] & 2U) != 0,
                      input.subspan(2));
  return 0;
}
