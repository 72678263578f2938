// TlsContext: certificates, keys and rules of one side of TLS connections. Immutable; shared by
// streams.
//
// Files are named as QEMU and libnbd name them, all PEM and in one directory: ca-cert.pem,
// ca-crl.pem (optional), server-cert.pem, server-key.pem, client-cert.pem, client-key.pem. TLS 1.2
// and later; no renegotiation, no session resumption, no keys with a passphrase.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"

struct ssl_ctx_st;

namespace berth {

class TlsContext {
 public:
  enum class ClientCertificates : std::uint8_t {
    ignored,   // anybody may connect
    required,  // only who has a certificate signed by ca-cert.pem
  };

  /// Blocking. not_found, permission or invalid_argument, naming the file that is to blame.
  static Result<std::shared_ptr<const TlsContext>> server(const std::string& directory,
                                                          ClientCertificates clients);
  /// Servers must have a certificate signed by ca-cert.pem. The client's own is used if its files
  /// are there.
  static Result<std::shared_ptr<const TlsContext>> client(const std::string& directory);

  ssl_ctx_st* get() const { return context_.get(); }

 private:
  struct Free {
    void operator()(ssl_ctx_st* context) const;
  };
  using Owner = std::unique_ptr<ssl_ctx_st, Free>;
  explicit TlsContext(Owner context) : context_(std::move(context)) {}
  static Result<Owner> create(bool is_server);

  Owner context_;
};

namespace detail {

/// What OpenSSL has to say about the last failure on this thread; "" if nothing. Empties its queue.
std::string take_tls_error();

}  // namespace detail
}  // namespace berth
