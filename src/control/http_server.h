// HTTP/1.1 on a UNIX socket, and on TCP with TLS where that is wanted. It knows bytes and limits,
// not operations. A connection that is upgraded is joined with another one, until either ends.
//
// On the control plane's thread. Bounds: the header and the body of a request, the time that one
// may take to arrive, the time that a client may take to read, the number of connections.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "control/async.h"
#include "control/dispatcher.h"

namespace berth::control {

constexpr std::size_t http_connections_max = 256;
constexpr std::size_t http_header_bytes_max = 16 * 1024;
constexpr std::size_t http_body_bytes_max = 1 << 20;

using RequestHandler = std::function<Async<HttpReply>(HttpRequest request)>;

struct TlsFiles {
  std::string directory;  // with server-cert.pem, server-key.pem, ca-cert.pem
};

class HttpServer {
 public:
  HttpServer(Executor executor, RequestHandler handler);
  ~HttpServer();

  /// Mode 0660, of root and the group `berth` if there is one. `in_use` if somebody answers there.
  Result<void> listen_unix(const std::string& path);
  /// `address` is host:port. Clients need a certificate of the CA. The address that it is then,
  /// with the real port.
  Result<std::string> listen_tls(const std::string& address, const TlsFiles& files);

  /// Takes no new request, ends streams, and waits for what is being answered, but not longer than
  /// this.
  Async<void> finish(Milliseconds patience);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace berth::control
