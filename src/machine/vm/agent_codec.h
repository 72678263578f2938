// One exchange with qemu-guest-agent, without I/O: what to send, and what the bytes that come mean.
//
// The port is shared, one client after the other, and the agent knows nothing of clients: there may
// be half a request of an earlier one in it, and answers on their way that nobody took. So an
// exchange begins with guest-sync-delimited: the byte 0xFF, which makes the agent's parser forget
// what it has, and a token; everything before the answer with this token is skipped. Only then the
// request is sent: one that nobody waits for any more is never left for the guest to find.
//
//   AgentExchange exchange(token, "guest-ping");
//   while (!exchange.answer()) {
//     send(exchange.take_output());
//     TRY(exchange.receive(bytes_that_came));
//   }
//
// Pure. What the guest says is bounded and never trusted.
// Source: QEMU, docs/interop/qemu-ga-ref (qga/qapi-schema.json).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "machine/control_protocol.h"
#include "machine/vm/peer_lines.h"

namespace berth::machine {

constexpr std::size_t agent_answer_max = std::size_t{4} << 20;    // bytes
constexpr std::size_t agent_skipped_max = std::size_t{64} << 20;  // bytes, of what others left
constexpr std::size_t agent_depth_max = 32;                       // nested arrays and objects

class AgentExchange {
 public:
  enum class Success : std::uint8_t {
    answered,  // with a `return`
    silent,    // as of guest-shutdown. A guest-ping is sent after it: its answer says that there is
               // no error
  };
  /// `token`: a random one. `arguments`: an object, or null for none.
  AgentExchange(std::uint64_t token, std::string command, const Json& arguments = nullptr,
                Success success = Success::answered);

  /// To be sent now; "" for nothing.
  std::string take_output();
  /// `limit` or `protocol` for what no agent says: there is no going on then.
  Result<void> receive(Bytes bytes);
  /// Once there is one: the member `return`, or `precondition` with the agent's words.
  const std::optional<Result<Json>>& answer() const { return answer_; }

  /// Whether the request has been given out by take_output().
  bool has_asked() const { return stage_ == Stage::asked; }
  /// Begins again, if nothing was asked so far: the agent may have started just now, and not have
  /// heard.
  void begin_again(std::uint64_t token);

 private:
  enum class Stage : std::uint8_t { synchronizing, synchronized, asked };
  Bytes skip_to_token(Bytes bytes);
  Result<void> take_answer(std::string_view line);

  std::string command_;
  std::string request_;
  Stage stage_ = Stage::synchronizing;
  std::uint64_t token_ = 0;
  std::string output_;
  std::optional<std::string> delimited_;  // what has come after a 0xFF
  std::size_t skipped_ = 0;
  LineBuffer lines_{agent_answer_max};
  std::optional<Result<Json>> answer_;
};

/// A random token.
std::uint64_t make_agent_token();

// The answers of commands, or `protocol`.
/// guest-fsfreeze-freeze and -thaw: how many file systems.
Result<unsigned> parse_agent_count(const Json& answer);
/// guest-fsfreeze-status: whether any is frozen.
Result<bool> parse_agent_is_frozen(const Json& answer);

}  // namespace berth::machine
