#include "control/http_server.h"

#include <algorithm>
#include <cstddef>
#include <set>
#include <utility>
#include <vector>

#include <grp.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/beast/core/basic_stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl/ssl_stream.hpp>
#include <fmt/format.h>

#include "base/log.h"
#include "control/close_on_exec.h"
#include "control/spawn.h"

namespace berth::control {
namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using UnixProtocol = asio::local::stream_protocol;
using UnixStream = beast::basic_stream<UnixProtocol, Executor>;
using TcpStream = beast::basic_stream<tcp, Executor>;
using TlsStream = beast::ssl_stream<TcpStream>;

namespace {

constexpr auto no_throw = asio::as_tuple(asio::use_awaitable);
constexpr auto request_timeout =
    std::chrono::seconds(30);  // for a request to arrive, an answer to be taken
constexpr auto idle_timeout = std::chrono::seconds(120);     // between requests
constexpr auto farewell_timeout = std::chrono::seconds(5);   // to read what came last, and go
constexpr std::size_t joined_piece = std::size_t{64} << 10;  // bytes
constexpr Milliseconds accept_retry{100};                    // after running out of descriptors

/// A connection, as the server knows it: something that can be closed.
class Connection {
 public:
  virtual ~Connection() = default;
  /// Ends it at once, or once the answer under way is written.
  virtual void end() = 0;
};

http::response<http::string_body> make_response(const HttpReply& reply, bool keep_alive) {
  http::response<http::string_body> response(static_cast<http::status>(reply.status), 11);
  response.set(http::field::server, "berth");
  response.set(http::field::content_type, "application/json");
  if (!reply.allow.empty()) response.set(http::field::allow, reply.allow);
  response.keep_alive(keep_alive);
  response.body() = reply.body + '\n';
  response.prepare_payload();
  return response;
}

/// The protocol that the client wants its connection to have from now on; "" for none.
std::string wanted_upgrade(const http::request<http::string_body>& request) {
  const bool wants = http::token_list(request[http::field::connection]).exists("upgrade");
  return wants ? std::string(request[http::field::upgrade]) : std::string();
}

template <typename Stream>
class HttpConnection final : public Connection,
                             public std::enable_shared_from_this<HttpConnection<Stream>> {
 public:
  HttpConnection(Stream stream, RequestHandler handler)
      : stream_(std::move(stream)),
        handler_(std::move(handler)),
        joined_(stream_.get_executor()),
        client_went_(stream_.get_executor()) {}

  Async<void> run() {
    const auto self = this->shared_from_this();
    if (co_await handshake()) {
      while (!ending_ && co_await serve_request()) {
      }
    }
    beast::get_lowest_layer(stream_).close();
  }

  void end() override {
    ending_ = true;
    if (lines_ != nullptr) lines_->close();
    boost::system::error_code ignored;
    joined_.close(ignored);
    if (!answering_) beast::get_lowest_layer(stream_).cancel();
  }

 private:
  Async<bool> handshake() {
    if constexpr (std::is_same_v<Stream, TlsStream>) {
      beast::get_lowest_layer(stream_).expires_after(request_timeout);
      const auto [error] =
          co_await stream_.async_handshake(asio::ssl::stream_base::server, no_throw);
      co_return !error;
    }
    co_return true;
  }

  /// One request and its answer; whether another may follow.
  Async<bool> serve_request() {
    http::request_parser<http::string_body> parser;
    parser.header_limit(http_header_bytes_max);
    parser.body_limit(http_body_bytes_max);
    beast::get_lowest_layer(stream_).expires_after(idle_timeout);
    if (const auto [error, bytes] =
            co_await http::async_read_header(stream_, buffer_, parser, no_throw);
        error) {
      co_return co_await refuse(error);
    }
    beast::get_lowest_layer(stream_).expires_after(request_timeout);
    if (const auto [error, bytes] = co_await http::async_read(stream_, buffer_, parser, no_throw);
        error) {
      co_return co_await refuse(error);
    }
    auto request = parser.release();
    const bool keep_alive = request.keep_alive();
    answering_ = true;
    beast::get_lowest_layer(stream_).expires_never();
    HttpReply reply = co_await handler_({.method = std::string(request.method_string()),
                                         .target = std::string(request.target()),
                                         .body = std::move(request.body()),
                                         .upgrade = wanted_upgrade(request)});
    const bool more = co_await answer(std::move(reply), keep_alive);
    answering_ = false;
    co_return more;
  }

  Async<bool> answer(HttpReply reply, bool keep_alive) {
    if (reply.connection) co_return co_await join(std::move(reply.connection));
    if (reply.stream) co_return co_await write_lines(std::move(reply.stream));
    co_return co_await write(make_response(reply, keep_alive && !ending_)) && keep_alive;
  }

  Async<bool> write(http::response<http::string_body> response) {
    beast::get_lowest_layer(stream_).expires_after(request_timeout);
    const auto [error, bytes] = co_await http::async_write(stream_, response, no_throw);
    co_return !error;
  }

  /// Says what was wrong with a request that is none, where anybody listens.
  Async<bool> refuse(beast::error_code error) {
    if (error == http::error::end_of_stream || error == beast::error::timeout ||
        error.category() != http::make_error_code(http::error::bad_method).category()) {
      co_return false;
    }
    HttpReply reply =
        error_reply(Error(ErrorKind::invalid_argument, "not an HTTP request: " + error.message()));
    if (error == http::error::body_limit) reply.status = 413;
    if (error == http::error::header_limit) reply.status = 431;
    co_await write(make_response(reply, false));
    co_return false;
  }

  /// A chunk for each line, until the lines or the client end.
  Async<bool> write_lines(std::unique_ptr<LineSource> lines) {
    http::response<http::empty_body> head(http::status::ok, 11);
    head.set(http::field::server, "berth");
    head.set(http::field::content_type, "application/x-ndjson");
    head.keep_alive(false);
    head.chunked(true);
    http::response_serializer<http::empty_body> serializer(head);
    beast::get_lowest_layer(stream_).expires_after(request_timeout);
    if (const auto [error, bytes] =
            co_await http::async_write_header(stream_, serializer, no_throw);
        error) {
      co_return false;
    }
    lines_ = lines.get();
    start(stream_.get_executor(), close_lines_when_client_goes(this->shared_from_this()));
    bool broken = false;
    while (!ending_ && !broken) {
      const auto line = co_await lines->next();
      if (!line) break;
      const std::string text = *line + '\n';
      beast::get_lowest_layer(stream_).expires_after(request_timeout);
      const auto [error, bytes] =
          co_await asio::async_write(stream_, http::make_chunk(asio::buffer(text)), no_throw);
      broken = static_cast<bool>(error);
    }
    lines_ = nullptr;
    if (!broken) {
      beast::get_lowest_layer(stream_).expires_after(request_timeout);
      co_await asio::async_write(stream_, http::make_chunk_last(), no_throw);
    }
    co_return false;
  }

  /// A client that only listens says nothing more; the socket is readable once it has gone.
  static Async<void> close_lines_when_client_goes(std::shared_ptr<HttpConnection> self) {
    auto& socket = beast::get_lowest_layer(self->stream_).socket();
    while (self->lines_ != nullptr && socket.is_open()) {
      const auto [error] = co_await socket.async_wait(
          std::remove_reference_t<decltype(socket)>::wait_read, no_throw);
      // Asio may say so when it is not: an event that was meant for a descriptor that it knew
      // before.
      pollfd watched{.fd = socket.native_handle(), .events = POLLIN, .revents = 0};
      if (!error && ::poll(&watched, 1, 0) == 0) continue;
      if (self->lines_ != nullptr) self->lines_->close();
      co_return;
    }
  }

  /// Whatever either says the other is told, until either ends.
  Async<bool> join(Fd other) {
    http::response<http::empty_body> head(http::status::switching_protocols, 11);
    head.set(http::field::server, "berth");
    head.set(http::field::connection, "Upgrade");
    head.set(http::field::upgrade, attach_protocol);
    beast::get_lowest_layer(stream_).expires_after(request_timeout);
    if (const auto [error, bytes] = co_await http::async_write(stream_, head, no_throw);
        error || ending_)
      co_return false;
    joined_.assign(UnixProtocol(), other.release());
    // A terminal may be silent for days.
    beast::get_lowest_layer(stream_).expires_never();
    boost::system::error_code ignored;
    beast::get_lowest_layer(stream_).socket().set_option(asio::socket_base::keep_alive(true),
                                                         ignored);
    start(stream_.get_executor(), tell_joined(this->shared_from_this()));
    std::vector<std::byte> piece(joined_piece);
    while (true) {
      const auto [failed, got] = co_await joined_.async_read_some(asio::buffer(piece), no_throw);
      if (failed) break;
      const auto [error, put] =
          co_await asio::async_write(stream_, asio::buffer(piece, got), no_throw);
      if (error) break;
    }
    co_await say_farewell();
    co_return false;
  }

  /// What the client says, to the connection that its own is joined with; what nobody takes any
  /// more is read all the same, so that the client gets what it has been sent.
  static Async<void> tell_joined(std::shared_ptr<HttpConnection> self) {
    beast::flat_buffer& said = self->buffer_;
    while (true) {
      if (said.size() != 0) co_await asio::async_write(self->joined_, said.data(), no_throw);
      said.consume(said.size());
      const auto [error, got] =
          co_await self->stream_.async_read_some(said.prepare(joined_piece), no_throw);
      if (error) break;
      said.commit(got);
    }
    boost::system::error_code ignored;
    self->joined_.shutdown(UnixProtocol::socket::shutdown_send, ignored);
    self->client_gone_ = true;
    self->client_went_.notify();
  }

  Async<void> say_farewell() {
    boost::system::error_code ignored;
    auto& lowest = beast::get_lowest_layer(stream_);
    lowest.socket().shutdown(asio::socket_base::shutdown_send, ignored);
    if (!ending_ && !client_gone_) co_await client_went_.wait_for(farewell_timeout);
    lowest.cancel();
    joined_.close(ignored);
  }

  Stream stream_;
  RequestHandler handler_;
  UnixProtocol::socket joined_;  // open while the connection is another one's
  Wakeup client_went_;
  bool client_gone_ = false;  // from a connection that is joined
  beast::flat_buffer buffer_{http_header_bytes_max + http_body_bytes_max};
  LineSource* lines_ = nullptr;  // of the stream under way
  bool answering_ = false;
  bool ending_ = false;
};

Result<void> remove_stale_socket(const std::string& path, const Executor& executor) {
  struct stat status{};
  if (::lstat(path.c_str(), &status) != 0) return {};
  if (!S_ISSOCK(status.st_mode)) {
    return failure(ErrorKind::already_exists, fmt::format("'{}' is there, and is no socket", path));
  }
  UnixProtocol::socket probe(executor);
  boost::system::error_code error;
  probe.connect(UnixProtocol::endpoint(path), error);
  if (!error)
    return failure(ErrorKind::in_use, fmt::format("another daemon answers at '{}'", path));
  ::unlink(path.c_str());
  return {};
}

Result<void> give_to_group(const std::string& path) {
  if (::chmod(path.c_str(), 0660) != 0)
    return errno_failure(errno, fmt::format("cannot set the mode of '{}'", path));
  group entry{};
  group* found = nullptr;
  std::string buffer(16 * 1024, '\0');
  if (::getgrnam_r("berth", &entry, buffer.data(), buffer.size(), &found) != 0 || found == nullptr)
    return {};
  if (::chown(path.c_str(), static_cast<uid_t>(-1), entry.gr_gid) != 0) {
    return errno_failure(errno, fmt::format("cannot give '{}' to the group berth", path));
  }
  return {};
}

Result<tcp::endpoint> resolve(const std::string& address, const Executor& executor) {
  const std::size_t colon = address.find_last_of(':');
  if (colon == std::string::npos || colon + 1 == address.size()) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is not an address and a port", address));
  }
  std::string host = address.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  tcp::resolver resolver(executor);
  boost::system::error_code error;
  const auto found =
      resolver.resolve(host, address.substr(colon + 1), tcp::resolver::passive, error);
  if (error || found.empty()) {
    return failure(ErrorKind::invalid_argument, fmt::format("'{}': {}", address, error.message()));
  }
  return found.begin()->endpoint();
}

Result<asio::ssl::context> make_tls_context(const TlsFiles& files) {
  try {
    asio::ssl::context context(asio::ssl::context::tls_server);
    context.set_options(asio::ssl::context::no_tlsv1 | asio::ssl::context::no_tlsv1_1);
    context.use_certificate_chain_file(files.directory + "/server-cert.pem");
    context.use_private_key_file(files.directory + "/server-key.pem", asio::ssl::context::pem);
    context.load_verify_file(files.directory + "/ca-cert.pem");
    context.set_verify_mode(asio::ssl::verify_peer | asio::ssl::verify_fail_if_no_peer_cert);
    return context;
  } catch (const boost::system::system_error& error) {
    return failure(ErrorKind::invalid_argument, fmt::format("the TLS files in '{}' do not do: {}",
                                                            files.directory, error.what()));
  }
}

}  // namespace

struct HttpServer::Impl : std::enable_shared_from_this<Impl> {
  Impl(Executor executor, RequestHandler handler)
      : executor(executor), handler(std::move(handler)), changed(std::move(executor)) {}

  template <typename Protocol, typename MakeStream>
  static Async<void> accept_all(std::shared_ptr<Impl> self,
                                asio::basic_socket_acceptor<Protocol, Executor>* acceptor,
                                MakeStream make_stream) {
    while (!self->finishing) {
      auto [error, socket] = co_await acceptor->async_accept(no_throw);
      if (error == asio::error::operation_aborted || !acceptor->is_open()) break;
      if (error) {
        log_warning("cannot accept a connection: {}", error.message());
        co_await pause_for(accept_retry);
        continue;
      }
      close_on_exec(socket);
      if (self->connections.size() >= http_connections_max) continue;  // closes it
      start(self->executor, run(self, make_stream(std::move(socket))));
    }
  }

  template <typename Stream>
  static Async<void> run(std::shared_ptr<Impl> self, Stream stream) {
    const auto connection =
        std::make_shared<HttpConnection<Stream>>(std::move(stream), self->handler);
    self->connections.insert(connection.get());
    try {
      co_await connection->run();
    } catch (const std::exception& exception) {
      log_warning("a connection ended: {}", exception.what());
    }
    self->connections.erase(connection.get());
    self->changed.notify();
  }

  Executor executor;
  RequestHandler handler;
  std::unique_ptr<asio::basic_socket_acceptor<UnixProtocol, Executor>> unix_acceptor;
  std::unique_ptr<asio::basic_socket_acceptor<tcp, Executor>> tcp_acceptor;
  std::unique_ptr<asio::ssl::context> tls;
  std::string unix_path;
  std::set<Connection*> connections;
  Wakeup changed;
  bool finishing = false;
};

HttpServer::HttpServer(Executor executor, RequestHandler handler)
    : impl_(std::make_shared<Impl>(std::move(executor), std::move(handler))) {}

HttpServer::~HttpServer() = default;

Result<void> HttpServer::listen_unix(const std::string& path) {
  if (path.size() > sizeof(sockaddr_un::sun_path) - 1) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("the socket path '{}' is too long: use a shorter --run-dir", path));
  }
  TRY(remove_stale_socket(path, impl_->executor));
  try {
    auto acceptor =
        std::make_unique<asio::basic_socket_acceptor<UnixProtocol, Executor>>(impl_->executor);
    acceptor->open();
    close_on_exec(*acceptor);
    const mode_t mask = ::umask(0177);  // nobody else, until its group and mode are set
    boost::system::error_code error;
    acceptor->bind(UnixProtocol::endpoint(path), error);
    ::umask(mask);
    if (error) return errno_failure(error.value(), fmt::format("cannot listen at '{}'", path));
    TRY(give_to_group(path));
    acceptor->listen();
    impl_->unix_acceptor = std::move(acceptor);
  } catch (const boost::system::system_error& error) {
    return failure(ErrorKind::io_error,
                   fmt::format("cannot listen at '{}': {}", path, error.what()));
  }
  impl_->unix_path = path;
  start(impl_->executor,
        Impl::accept_all(impl_, impl_->unix_acceptor.get(), [](UnixProtocol::socket socket) {
          return UnixStream(std::move(socket));
        }));
  return {};
}

Result<std::string> HttpServer::listen_tls(const std::string& address, const TlsFiles& files) {
  const tcp::endpoint endpoint = TRY(resolve(address, impl_->executor));
  impl_->tls = std::make_unique<asio::ssl::context>(TRY(make_tls_context(files)));
  try {
    impl_->tcp_acceptor =
        std::make_unique<asio::basic_socket_acceptor<tcp, Executor>>(impl_->executor, endpoint);
  } catch (const boost::system::system_error& error) {
    return errno_failure(error.code().value(), fmt::format("cannot listen at '{}'", address));
  }
  close_on_exec(*impl_->tcp_acceptor);
  start(impl_->executor, Impl::accept_all(impl_, impl_->tcp_acceptor.get(),
                                          [tls = impl_->tls.get()](tcp::socket socket) {
                                            return TlsStream(TcpStream(std::move(socket)), *tls);
                                          }));
  const auto bound = impl_->tcp_acceptor->local_endpoint();
  return fmt::format(fmt::runtime(bound.address().is_v6() ? "[{}]:{}" : "{}:{}"),
                     bound.address().to_string(), bound.port());
}

Async<void> HttpServer::finish(Milliseconds patience) {
  const auto impl = impl_;
  impl->finishing = true;
  boost::system::error_code ignored;
  if (impl->unix_acceptor) {
    impl->unix_acceptor->close(ignored);
    ::unlink(impl->unix_path.c_str());
  }
  if (impl->tcp_acceptor) impl->tcp_acceptor->close(ignored);
  for (Connection* connection : impl->connections) connection->end();
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (!impl->connections.empty() && std::chrono::steady_clock::now() < deadline) {
    co_await impl->changed.wait_for(patience);
  }
}

}  // namespace berth::control
