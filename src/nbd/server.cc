#include "nbd/server.h"

#include <utility>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "async/deadline.h"

namespace berth::nbd {
namespace {

constexpr Duration accept_pause = std::chrono::milliseconds(100);

}  // namespace

Server::Server(Loop& loop, ExportDirectory& exports, ServerOptions options)
    : loop_(loop), exports_(exports), options_(options), gate_(loop) {}

Server::~Server() { gate_.abandon(); }

void Server::serve(std::unique_ptr<Listener> listener) {
  listeners_.push_back(std::move(listener));
  gate_.spawn(accept_connections(*listeners_.back()));
}

void Server::serve(std::unique_ptr<Stream> stream) {
  if (stopping_) return stream->shutdown();
  if (connections_.size() >= options_.connections_max) {
    spdlog::warn("nbd: {} was turned away: {} clients are connected", stream->peer(),
                 connections_.size());
    stream->shutdown();
    return;
  }
  gate_.spawn(serve_connection(std::move(stream)));
}

Task<> Server::accept_connections(Listener& listener) {
  while (!stopping_) {
    Result<std::unique_ptr<Stream>> stream = co_await listener.accept();
    if (stopping_) co_return;
    if (stream) {
      serve(std::move(*stream));
      continue;
    }
    if (stream.error().kind() == ErrorKind::cancelled) co_return;
    spdlog::warn("nbd: cannot accept a connection: {}", stream.error().message());
    co_await loop_.sleep(accept_pause);  // out of descriptors, most likely: not for ever
  }
}

Task<> Server::serve_connection(std::unique_ptr<Stream> stream) {
  Connection connection(loop_, std::move(stream), exports_, pool_, options_.connection);
  const auto entry = connections_.insert(connections_.end(), &connection);
  co_await connection.serve();
  connections_.erase(entry);
}

Task<> Server::stop() {
  stopping_ = true;
  for (const auto& listener : listeners_) listener->close();
  for (Connection* connection : connections_) connection->drain();
  Deadline deadline(loop_, options_.drain_timeout, [this] {
    for (Connection* connection : connections_) connection->cut();
  });
  co_await gate_.drained();
  co_await deadline.stop();
  listeners_.clear();
}

}  // namespace berth::nbd
