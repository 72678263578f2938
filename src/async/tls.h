// TlsStream: TLS over another Stream (RFC 8446, RFC 5246), on either side.
//
// What is read and written passes through buffers of a fixed size, whatever the peer sends. Errors:
// `permission` when a certificate is refused (by us or, as far as it says so, by the peer),
// `protocol` when the peer breaks TLS, `disconnected` when it goes without a word (no close_notify:
// what was read may not be all), `timed_out` for a handshake that takes too long. Encryption
// happens on the loop, where the bytes are: a hand-over to the pool costs more than a record. With
// TLS 1.3 a client learns only from its first read that the server has refused its certificate.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "async/event.h"
#include "async/stream.h"
#include "async/tls_context.h"
#include "base/aligned_buffer.h"

struct bio_st;
struct ssl_st;

namespace berth {

class TlsStream final : public Stream {
 public:
  /// The server's side of a handshake on `transport`, which becomes the stream's, and goes if this
  /// fails.
  static Task<Result<std::unique_ptr<TlsStream>>> accept(Loop& loop,
                                                         std::shared_ptr<const TlsContext> context,
                                                         std::unique_ptr<Stream> transport,
                                                         Duration timeout);
  /// The client's side; the server's certificate must be one for `host` (a name or an address).
  static Task<Result<std::unique_ptr<TlsStream>>> connect(Loop& loop,
                                                          std::shared_ptr<const TlsContext> context,
                                                          std::unique_ptr<Stream> transport,
                                                          std::string host, Duration timeout);

  Task<Result<std::size_t>> read_some(MutableBytes into) override;
  Task<Result<void>> write_all(std::span<const Bytes> parts) override;
  /// Sends close_notify.
  Task<Result<void>> finish_writing() override;
  /// Without close_notify: call finish_writing() before where the peer should see an orderly end.
  void shutdown() override { transport_->shutdown(); }
  const std::string& peer() const override { return transport_->peer(); }

  /// The subject of the peer's certificate ("CN=host-1,O=Example", RFC 2253); "" if it has shown
  /// none.
  std::string peer_subject() const;

 private:
  struct Free {
    void operator()(ssl_st* connection) const;
  };
  TlsStream(Loop& loop, std::shared_ptr<const TlsContext> context,
            std::unique_ptr<Stream> transport);
  Result<void> set_up();
  Result<void> expect_host(const std::string& host);
  static Task<Result<std::unique_ptr<TlsStream>>> shake_hands_in_time(
      std::unique_ptr<TlsStream> stream, Duration timeout);
  Task<Result<void>> shake_hands();
  Task<Result<void>> receive();
  Task<Result<void>> send_pending();
  Result<std::optional<std::size_t>> decrypt(MutableBytes into);
  Error failed(const char* what);

  Loop& loop_;
  std::shared_ptr<const TlsContext> context_;
  std::unique_ptr<Stream> transport_;
  std::unique_ptr<ssl_st, Free> connection_;
  bio_st* received_ = nullptr;  // records that came; the connection's
  bio_st* pending_ = nullptr;   // records to send; the connection's
  AlignedBuffer incoming_;
  AlignedBuffer outgoing_;
  AsyncMutex sending_;
  bool finished_ = false;
};

}  // namespace berth
