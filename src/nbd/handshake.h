// The server's side of the fixed newstyle handshake, as a state machine: bytes in, bytes out, and
// what the connection has to do in between. Pure: no I/O, no time.
//
//   S  greeting: magic numbers, handshake flags
//   C  client flags
//   C  option, S replies, as often as the client likes
//   C  NBD_OPT_GO or NBD_OPT_EXPORT_NAME: the transmission phase; NBD_OPT_ABORT: the end
//
// Owned and driven by a Connection. Whatever the client sends, it ends in a Step or in `protocol`,
// after which the connection is to be closed (NBD: Termination of the session during option
// haggling).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "nbd/codec.h"
#include "nbd/export.h"
#include "nbd/protocol.h"

namespace berth::nbd {

enum class TlsMode : std::uint8_t {
  off,       // NBD: NOTLS mode
  required,  // NBD: FORCEDTLS mode
};

class Handshake {
 public:
  /// What comes next, after the output has been sent.
  enum class Step : std::uint8_t {
    receive,       // read more from the client, then receive()
    find_export,   // look up export_name(), then found() or not_found()
    list_exports,  // then listed()
    start_tls,     // over what was sent so far in the clear; then tls_started()
    transmit,      // session() and contexts() hold
    end,           // close the connection
  };

  /// The greeting is its first output.
  explicit Handshake(TlsMode tls);

  /// Takes whole messages from the front of `input`, until there is something to do.
  Result<Step> receive(Bytes& input);
  Step found(const ExportInfo& info);
  Step not_found(const Error& error);
  Step listed(const std::vector<ListedExport>& exports);
  void tls_started();

  /// What is to be sent now; gives it away.
  std::vector<std::byte> take_output() { return std::exchange(output_, {}); }

  const std::string& export_name() const { return export_name_; }
  const Session& session() const { return session_; }
  /// The selected metadata contexts; the id of each is its index.
  const std::vector<std::string>& contexts() const { return contexts_; }

 private:
  class OptionData;

  Result<Step> receive_client_flags(Bytes& input);
  Result<Step> receive_option(Bytes& input);
  Step begin_option(Bytes data);
  Step begin_export_name(Bytes data);
  Step begin_list(Bytes data);
  Step begin_starttls(Bytes data);
  Step begin_info(Bytes data);
  Step begin_structured_reply(Bytes data);
  Step begin_meta_context(Bytes data);
  void forget_contexts();

  Step found_for_export_name(const ExportInfo& info);
  Step found_for_info(const ExportInfo& info);
  Step found_for_meta_context(const ExportInfo& info);
  bool matches_query(std::string_view context) const;

  void reply(OptionReply type, Bytes data);
  Step acknowledge();
  Step refuse(OptionReply type, std::string_view message);
  void reply_information(const ExportInfo& info);
  void begin_session(const ExportInfo& info);

  const TlsMode tls_mode_;
  bool tls_started_ = false;
  bool has_client_flags_ = false;
  bool no_zeroes_ = false;
  std::size_t options_seen_ = 0;
  std::uint32_t option_ = 0;  // the one under way
  std::size_t skip_ = 0;      // bytes of it that are not looked at
  std::vector<std::byte> output_;

  // Of the option under way.
  std::string export_name_;
  std::vector<std::uint16_t> information_requests_;
  std::vector<std::string> queries_;

  // Negotiated so far; TLS takes it all back.
  bool structured_replies_ = false;
  std::string contexts_export_;
  std::vector<std::string> contexts_;
  Session session_;
};

}  // namespace berth::nbd
