#include "control/keeper_connection.h"

#include <map>
#include <optional>
#include <utility>

#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/write.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "control/close_on_exec.h"
#include "control/spawn.h"
#include "machine/control_protocol.h"

namespace berth::control {
namespace asio = boost::asio;
using machine::ControlReply;
using Json = nlohmann::json;

namespace {

constexpr std::size_t outgoing_bytes_max = 8 << 20;
constexpr auto no_throw = asio::as_tuple(asio::use_awaitable);

struct PendingCall {
  explicit PendingCall(const Executor& executor) : answered(executor) {}
  std::optional<Result<Json>> answer;
  std::function<void(const machine::ControlProgress&)> progress;
  Wakeup answered;
};

}  // namespace

struct KeeperConnection::Impl : std::enable_shared_from_this<Impl> {
  explicit Impl(Executor executor)
      : socket(executor), over(executor), executor(std::move(executor)) {}

  void send(std::string line) {
    if (closed) return;
    outgoing += line;
    if (outgoing.size() > outgoing_bytes_max) {
      close("the keeper does not read what it is asked");
      return;
    }
    if (!writing) {
      writing = true;
      start(executor, write_outgoing(shared_from_this()));
    }
  }

  void send_cancel(std::uint64_t id) {
    if (pending.contains(id)) send(machine::format_request(next_id++, "cancel", {{"id", id}}));
  }

  void close(const std::string& reason) {
    if (std::exchange(closed, true)) return;
    boost::system::error_code ignored;
    socket.close(ignored);
    for (const auto& [id, call] : std::exchange(pending, {})) {
      if (!call->answer)
        call->answer = failure(ErrorKind::disconnected, "the keeper is gone: " + reason);
      call->answered.notify();
    }
    over.notify();
  }

  void take(std::string_view line) {
    auto reply = machine::parse_reply(line);
    if (!reply) return close(reply.error().message());
    if (reply->kind == ControlReply::Kind::event) {
      if (on_event) on_event(reply->event, reply->message);
      return;
    }
    if (!reply->id)
      return close(reply->error ? reply->error->message() : "an answer without an id");
    const auto found = pending.find(*reply->id);
    if (found == pending.end()) return;  // nobody waits for it any more
    const auto call = found->second;
    if (reply->kind == ControlReply::Kind::progress) {
      if (call->progress) call->progress(reply->progress);
      return;
    }
    if (reply->kind == ControlReply::Kind::error) {
      call->answer = failure(std::move(*reply->error));
    } else {
      call->answer = std::move(reply->result);
    }
    pending.erase(found);
    call->answered.notify();
  }

  static Async<void> write_outgoing(std::shared_ptr<Impl> self) {
    while (!self->closed && !self->outgoing.empty()) {
      const std::string batch = std::exchange(self->outgoing, {});
      const auto [error, bytes] =
          co_await asio::async_write(self->socket, asio::buffer(batch), no_throw);
      if (error) self->close(error.message());
    }
    self->writing = false;
  }

  static Async<void> read_replies(std::shared_ptr<Impl> self) {
    std::string received;
    while (!self->closed) {
      const auto [error, length] = co_await asio::async_read_until(
          self->socket, asio::dynamic_buffer(received, machine::control_line_max + 1), '\n',
          no_throw);
      if (error) {
        self->close(error == asio::error::eof ? "it closed the connection" : error.message());
        break;
      }
      self->take(std::string_view(received).substr(0, length - 1));
      received.erase(0, length);
    }
  }

  asio::local::stream_protocol::socket socket;
  Wakeup over;
  Executor executor;
  std::map<std::uint64_t, std::shared_ptr<PendingCall>> pending;
  std::uint64_t next_id = 1;
  std::string outgoing;
  EventHandler on_event;
  bool writing = false;
  bool closed = false;
};

KeeperConnection::KeeperConnection(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

KeeperConnection::~KeeperConnection() { impl_->close("the connection was given up"); }

Async<Result<std::shared_ptr<KeeperConnection>>> KeeperConnection::connect(
    std::string socket_path) {
  if (socket_path.size() > sizeof(sockaddr_un::sun_path) - 1) {
    co_return failure(ErrorKind::invalid_argument,
                      fmt::format("the socket path '{}' is too long", socket_path));
  }
  auto impl = std::make_shared<Impl>(co_await asio::this_coro::executor);
  boost::system::error_code opened;
  impl->socket.open(asio::local::stream_protocol(), opened);
  if (opened) co_return errno_failure(opened.value(), "cannot make a socket");
  close_on_exec(impl->socket);
  const auto [error] = co_await impl->socket.async_connect(
      asio::local::stream_protocol::endpoint(socket_path), no_throw);
  if (error) {
    co_return failure(ErrorKind::disconnected,
                      fmt::format("no keeper answers at '{}': {}", socket_path, error.message()));
  }
  start(impl->executor, Impl::read_replies(impl));
  co_return std::shared_ptr<KeeperConnection>(new KeeperConnection(std::move(impl)));
}

Async<Result<Json>> KeeperConnection::call(std::string method, Json params, CallOptions options) {
  const auto impl = impl_;  // outlives this, if the connection is dropped meanwhile
  if (impl->closed) co_return failure(ErrorKind::disconnected, "the keeper is gone");
  const std::uint64_t id = impl->next_id++;
  const auto call = std::make_shared<PendingCall>(impl->executor);
  if (options.progress) {
    params["progress"] = true;
    call->progress = std::move(options.progress);
  }
  impl->pending.emplace(id, call);
  impl->send(machine::format_request(id, method, std::move(params)));

  const std::stop_callback on_stop(options.stop, [weak = std::weak_ptr(impl), id] {
    if (const auto self = weak.lock()) self->send_cancel(id);
  });
  const auto deadline = std::chrono::steady_clock::now() + options.timeout;
  while (!call->answer) {
    if (options.timeout.count() == 0) {
      co_await call->answered.wait();
      continue;
    }
    const auto left =
        std::chrono::duration_cast<Milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() > 0) {
      co_await call->answered.wait_for(left + Milliseconds(1));
      continue;
    }
    impl->send_cancel(id);
    impl->pending.erase(id);
    co_return failure(ErrorKind::timed_out, fmt::format("the keeper did not answer {} within {} ms",
                                                        method, options.timeout.count()));
  }
  co_return std::move(*call->answer);
}

void KeeperConnection::hear(const Json& hello, bool& heard, EventHandler handler) {
  set_event_handler(handler);
  if (std::exchange(heard, true)) return;
  for (const Json& past : hello.value("events", Json::array()))
    handler(past.value("event", std::string()), past.value("message", std::string()));
}

void KeeperConnection::set_event_handler(EventHandler handler) {
  impl_->on_event = std::move(handler);
}

Result<pid_t> KeeperConnection::peer_pid() const {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(impl_->socket.native_handle(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) {
    return errno_failure(errno, "cannot learn who the keeper is");
  }
  return peer.pid;
}

bool KeeperConnection::is_open() const { return !impl_->closed; }

Async<void> KeeperConnection::heard_out(Milliseconds patience) {
  const auto impl = impl_;
  if (!impl->closed) co_await impl->over.wait_for(patience);
}

void KeeperConnection::close() { impl_->close("the connection was closed"); }

}  // namespace berth::control
