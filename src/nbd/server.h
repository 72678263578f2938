// Server: NBD for whoever connects, each client with its own state, all on one loop.
//
//   nbd::Server server(loop, exports, {});
//   server.serve(MUST(SocketListener::listen_unix(loop, "/run/berth/vol.sock")));
//   …
//   co_await server.stop();
//
// Loop and directory outlive it. Fixed newstyle handshake; NBD_OPT_LIST, INFO, GO and EXPORT_NAME,
// structured replies, metadata contexts, TLS. Every client has limits of its own, so that a slow
// one waits alone.
#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <vector>

#include "async/gate.h"
#include "async/stream.h"
#include "nbd/buffer_pool.h"
#include "nbd/connection.h"
#include "nbd/export.h"

namespace berth::nbd {

struct ServerOptions {
  std::size_t connections_max = 128;  // more are turned away, with a line in the log
  ConnectionOptions connection;       // TLS, timeout and limits of each
  Duration drain_timeout = std::chrono::seconds(20);
};

class Server {
 public:
  Server(Loop& loop, ExportDirectory& exports, ServerOptions options);
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;
  /// After stop(); or at any time in a simulated process death.
  ~Server();

  /// Accepts connections until stop(). Any number of listeners.
  void serve(std::unique_ptr<Listener> listener);
  /// Serves a connection that somebody else accepted.
  void serve(std::unique_ptr<Stream> stream);

  /// Accepts no more, answers what is under way, and closes. Clients that do not take their answers
  /// within drain_timeout are cut off. Ends when nothing is left; what an export has begun is
  /// always waited for.
  Task<> stop();

  std::size_t connection_count() const { return connections_.size(); }

 private:
  Task<> accept_connections(Listener& listener);
  Task<> serve_connection(std::unique_ptr<Stream> stream);

  Loop& loop_;
  ExportDirectory& exports_;
  const ServerOptions options_;
  BufferPool pool_;
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::list<Connection*> connections_;
  bool stopping_ = false;
  Gate gate_;
};

}  // namespace berth::nbd
