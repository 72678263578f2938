#include "control/cli/api_client.h"

#include <array>
#include <cerrno>
#include <utility>

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "async/socket_address.h"
#include "base/fd.h"
#include "control/dispatcher.h"
#include "control/router.h"
#include "machine/control_protocol.h"

namespace berth::control::cli {
namespace {

using Json = nlohmann::json;
namespace http = boost::beast::http;
using ResponseParser = http::response_parser<http::string_body>;

constexpr int silence_timeout_ms = 600'000;
constexpr std::uint64_t answer_bytes_max = std::uint64_t{1} << 30;

Result<Fd> connect_to(const std::string& path, const std::string& start_hint) {
  if (path.size() >= sizeof sockaddr_un::sun_path) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("the socket path '{}' is too long", path));
  }
  auto socket = connect_unix(path);
  if (socket) return socket;
  if (socket.error().kind() == ErrorKind::permission) {
    return failure(
        ErrorKind::permission,
        fmt::format("you may not talk to the daemon at '{}': be root, or in the group berth",
                    path));
  }
  return failure(ErrorKind::disconnected,
                 fmt::format("no daemon answers at '{}'. Start one with: {}", path, start_hint));
}

Result<void> send_all(const Fd& socket, std::string_view text) {
  while (!text.empty()) {
    const ssize_t sent = ::send(socket.get(), text.data(), text.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return errno_failure(errno, "cannot send to the daemon");
    text.remove_prefix(static_cast<std::size_t>(sent));
  }
  return {};
}

std::string request_text(const Action& action, const Json& parameters) {
  const HttpCall call = make_call(action, parameters);
  std::string text = fmt::format("{} {} HTTP/1.1\r\nHost: berth\r\n", call.method, call.target);
  text += action.answer == Answer::upgrade
              ? fmt::format("Connection: Upgrade\r\nUpgrade: {}\r\n", attach_protocol)
              : "Connection: close\r\n";
  if (!call.body.empty()) text += "Content-Type: application/json\r\n";
  if (!call.body.empty() || call.method == "POST")
    text += fmt::format("Content-Length: {}\r\n", call.body.size());
  return text + "\r\n" + call.body;
}

/// One exchange: sends the request at once, then takes the response in pieces.
class Exchange {
 public:
  Exchange(Fd socket, int interrupt_fd) : socket_(std::move(socket)), interrupt_fd_(interrupt_fd) {
    parser_.body_limit(answer_bytes_max);
    parser_.eager(true);
  }

  /// Reads on; false at the response's end.
  Result<bool> more(int timeout_ms) {
    if (parser_.is_done()) return false;
    TRY(wait(timeout_ms));
    std::array<char, 65536> buffer{};
    const ssize_t got = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
    if (got < 0 && errno == EINTR) return true;
    if (got < 0) return errno_failure(errno, "cannot read the daemon's answer");
    if (got == 0)
      return failure(ErrorKind::disconnected, "the daemon went away before it had answered");
    pending_.append(buffer.data(), static_cast<std::size_t>(got));
    boost::system::error_code error;
    const std::size_t used = parser_.put(boost::asio::buffer(pending_), error);
    pending_.erase(0, used);
    if (error && error != http::error::need_more) {
      return failure(ErrorKind::protocol,
                     fmt::format("the daemon's answer is no HTTP: {}", error.message()));
    }
    return true;
  }

  bool has_header() const { return parser_.is_header_done(); }
  unsigned status() { return parser_.get().result_int(); }
  /// What has come of the body; whoever takes it away may.
  std::string& body() { return parser_.get().body(); }
  /// The connection, once it is another protocol's. It has not been read beyond the header: who
  /// joins it speaks when it is asked.
  Fd take_socket() { return std::move(socket_); }

 private:
  Result<void> wait(int timeout_ms) const {
    std::array<pollfd, 2> watched{{{.fd = socket_.get(), .events = POLLIN, .revents = 0},
                                   {.fd = interrupt_fd_, .events = POLLIN, .revents = 0}}};
    const int ready = ::poll(watched.data(), watched.size(), timeout_ms);
    if (ready < 0 && errno != EINTR) return errno_failure(errno, "cannot wait for the daemon");
    if (ready == 0) return failure(ErrorKind::timed_out, "the daemon does not answer");
    if (watched[1].revents != 0) return failure(ErrorKind::cancelled, "interrupted");
    return {};
  }

  Fd socket_;
  int interrupt_fd_;
  ResponseParser parser_;
  std::string pending_;
};

Error error_of(unsigned status, const std::string& body) {
  const auto parsed = machine::parse_json(body);
  if (parsed && parsed->is_object() && parsed->contains("error") &&
      (*parsed)["error"].is_object()) {
    const Json& error = (*parsed)["error"];
    return {error_kind_from_string(error.value("kind", "")), error.value("message", "")};
  }
  return {ErrorKind::protocol, fmt::format("the daemon answered with status {}", status)};
}

/// The daemon's error, where that is its answer.
Result<void> check_answer(Exchange& exchange) {
  if (exchange.status() < 400) return {};
  return failure(error_of(exchange.status(), exchange.body()));
}

/// Cuts complete lines off the front of `text`.
Result<bool> take_lines(std::string& text, const std::function<bool(const Json&)>& take) {
  std::size_t begin = 0;
  for (std::size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
    const Json line = TRY(machine::parse_json(std::string_view(text).substr(begin, end - begin)));
    begin = end + 1;
    if (!take(line)) return false;
  }
  text.erase(0, begin);
  return true;
}

}  // namespace

ApiClient::ApiClient(std::string socket_path, std::string start_hint)
    : socket_path_(std::move(socket_path)), start_hint_(std::move(start_hint)) {}

Result<Fd> ApiClient::ask(const Action& action, const Json& parameters) const {
  Fd socket = TRY(connect_to(socket_path_, start_hint_));
  TRY(send_all(socket, request_text(action, parameters)));
  return socket;
}

Result<Json> ApiClient::call(const Action& action, const Json& parameters) const {
  Exchange exchange(TRY(ask(action, parameters)), -1);
  while (TRY(exchange.more(silence_timeout_ms))) {
  }
  TRY(check_answer(exchange));
  return machine::parse_json(exchange.body());
}

Result<void> ApiClient::stream(const Action& action, const Json& parameters,
                               const std::function<bool(const Json&)>& take,
                               int interrupt_fd) const {
  Exchange exchange(TRY(ask(action, parameters)), interrupt_fd);
  while (TRY(exchange.more(-1))) {
    if (!exchange.has_header() || exchange.status() >= 400) continue;
    if (!TRY(take_lines(exchange.body(), take))) return {};
  }
  return check_answer(exchange);
}

Result<Fd> ApiClient::upgrade(const Action& action, const Json& parameters) const {
  Exchange exchange(TRY(ask(action, parameters)), -1);
  while (!exchange.has_header() || exchange.status() >= 400) {
    if (!TRY(exchange.more(silence_timeout_ms))) break;
  }
  TRY(check_answer(exchange));
  return exchange.take_socket();
}

}  // namespace berth::control::cli
