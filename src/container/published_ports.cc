#include "container/published_ports.h"

#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>

#include "async/deadline.h"
#include "base/log.h"

namespace berth::container {
namespace {

constexpr Duration accept_pause = std::chrono::milliseconds(100);
constexpr Duration guest_patience = std::chrono::seconds(60);
constexpr Duration connect_timeout = std::chrono::seconds(15);
constexpr std::size_t read_size = std::size_t{16} << 10;

}  // namespace

/// One connection and its stream: each carries one way until its end.
class PublishedPorts::Connection {
 public:
  Connection(UringLoop& loop, std::unique_ptr<berth::Stream> socket, const Wanted& wanted,
             const Wanted& answered)
      : socket_(std::move(socket)),
        wanted_(wanted),
        answered_(answered),
        changed_(loop),
        tasks_(loop) {}

  Task<> run(std::shared_ptr<AgentLink> link, std::uint32_t number, std::uint16_t port) {
    link_ = std::move(link);
    stream_ = number;
    const auto connected = co_await link_->connect_stream(
        stream_, port, [this] { changed_.notify_all(); }, connect_timeout);
    if (connected && !is_over_) {
      tasks_.spawn(carry_in());
      co_await carry_out();
      // The other way may still have something to carry.
      while (!is_over_ && is_carrying_in_) co_await changed_.wait();
      // One that has ended both ways, and all of it was taken, goes by itself.
      const auto is_done = [this] {
        const agent::Stream* both = stream();
        return both == nullptr || both->out->kept_from() == both->out->produced();
      };
      while (!is_over_ && !is_done()) co_await changed_.wait();
    }
    const bool is_broken = is_over_;
    shutdown();
    if (is_broken) co_await link_->abandon_stream(stream_, connect_timeout);
    co_await tasks_.drained();
    link_->close_stream(stream_);
  }

  void shutdown() {
    is_over_ = true;
    socket_->shutdown();
    changed_.notify_all();
  }

 private:
  agent::Stream* stream() { return link_->is_open() ? link_->stream(stream_) : nullptr; }

  Task<> carry_in() {
    is_carrying_in_ = true;
    std::vector<std::byte> buffer(read_size);
    while (!is_over_) {
      agent::Stream* to = stream();
      if (to == nullptr || to->out->is_stopped()) break;
      const std::size_t room = std::min(to->out->room(), buffer.size());
      if (room == 0) {
        co_await changed_.wait();
        continue;
      }
      const auto count = co_await socket_->read_some(MutableBytes(buffer).first(room));
      to = stream();
      if (to == nullptr || is_over_) break;
      if (!count || *count == 0) {
        // What was broken off looks to the guest like an end: there is no other word for it.
        to->out->finish();
        link_->wake();
        break;
      }
      wanted_();
      to->out->add(Bytes(buffer).first(*count));
      link_->wake();
    }
    is_carrying_in_ = false;
    changed_.notify_all();
  }

  Task<> carry_out() {
    while (!is_over_) {
      agent::Stream* from = stream();
      if (from == nullptr) co_return shutdown();
      const Bytes waiting = from->in->readable();
      if (waiting.empty()) {
        if (from->in->is_at_end()) {
          (void)co_await socket_->finish_writing();
          co_return;
        }
        co_await changed_.wait();
        continue;
      }
      const std::vector<std::byte> piece(waiting.begin(), waiting.end());
      const std::array<Bytes, 1> parts = {Bytes(piece)};
      if (!co_await socket_->write_all(parts)) co_return shutdown();
      from = stream();
      if (from == nullptr) co_return shutdown();
      from->in->consume(piece.size());
      answered_();
      link_->wake();
    }
  }

  std::unique_ptr<berth::Stream> socket_;
  const Wanted& wanted_;
  const Wanted& answered_;
  std::shared_ptr<AgentLink> link_;
  std::uint32_t stream_ = 0;
  Event changed_;
  Gate tasks_;
  bool is_carrying_in_ = false;
  bool is_over_ = false;
};

PublishedPorts::PublishedPorts(UringLoop& loop, Link link, Wanted wanted, Wanted answered)
    : loop_(loop),
      link_(std::move(link)),
      wanted_(std::move(wanted)),
      answered_(std::move(answered)),
      link_changed_(loop),
      tasks_(loop) {}

PublishedPorts::~PublishedPorts() = default;

Result<void> PublishedPorts::open(const std::vector<PublishedPort>& ports,
                                  std::vector<Fd> listening) {
  std::vector<std::unique_ptr<SocketListener>> listeners;
  ports_ = ports;
  listening.resize(ports_.size());
  for (std::size_t i = 0; i < ports_.size(); ++i) {
    PublishedPort& port = ports_[i];
    auto listener = listening[i] ? SocketListener::adopt(loop_, std::move(listening[i]))
                                 : SocketListener::listen_tcp(
                                       loop_, {.host = port.host_address, .port = port.host_port});
    if (!listener) {
      return failure(std::move(listener).error().with_context(fmt::format(
          "cannot publish port {} at {}:{}", port.guest_port, port.host_address, port.host_port)));
    }
    port.host_port = (*listener)->port();
    listeners.push_back(std::move(*listener));
  }
  listeners_ = std::move(listeners);
  for (std::size_t i = 0; i < listeners_.size(); ++i)
    tasks_.spawn(accept(*listeners_[i], ports_[i].guest_port));
  return {};
}

std::vector<int> PublishedPorts::descriptors() const {
  std::vector<int> all;
  for (const auto& listener : listeners_) all.push_back(listener->fd());
  return all;
}

/// There are never so many that one which comes around again is still there.
std::uint32_t PublishedPorts::next_stream() {
  last_stream_ = (last_stream_ + 1) % agent::first_free_stream;
  return agent::first_free_stream + last_stream_;
}

Task<> PublishedPorts::accept(SocketListener& listener, std::uint16_t guest_port) {
  while (!closing_) {
    auto socket = co_await listener.accept();
    if (closing_ || (!socket && socket.error().kind() == ErrorKind::cancelled)) co_return;
    if (!socket) {
      log_warning("published port {}: {}", guest_port, socket.error().message());
      co_await loop_.sleep(accept_pause);
      continue;
    }
    if (connections_.size() >= published_connections_max) continue;  // which disconnects it
    tasks_.spawn(carry(std::move(*socket), guest_port));
  }
}

Task<> PublishedPorts::carry(std::unique_ptr<berth::Stream> socket, std::uint16_t guest_port) {
  Connection connection(loop_, std::move(socket), wanted_, answered_);
  connections_.push_back(&connection);
  wanted_();
  std::shared_ptr<AgentLink> link = link_();
  {
    Deadline deadline(loop_, guest_patience, [this] { link_changed_.notify_all(); });
    while (!link && !deadline.expired() && !closing_) {
      co_await link_changed_.wait();
      link = link_();
    }
    co_await deadline.stop();
  }
  if (link && !closing_) {
    co_await connection.run(std::move(link), next_stream(), guest_port);
  }
  std::erase(connections_, &connection);
}

Task<> PublishedPorts::close() {
  closing_ = true;
  for (const auto& listener : listeners_) listener->close();
  for (Connection* connection : connections_) connection->shutdown();
  link_changed_.notify_all();
  co_await tasks_.drained();
  listeners_.clear();
}

}  // namespace berth::container
