// Connection: one client of the server, from its greeting to its last reply.
//
// Owned by a Server, on its loop. Directory and pool outlive it.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "async/loop.h"
#include "async/stream.h"
#include "async/tls_context.h"
#include "nbd/buffer_pool.h"
#include "nbd/export.h"
#include "nbd/handshake.h"
#include "nbd/receive_buffer.h"
#include "nbd/transmission.h"

namespace berth::nbd {

struct ConnectionOptions {
  std::shared_ptr<const TlsContext> tls;  // with one, TLS is required; without, it is not offered
  Duration handshake_timeout = std::chrono::seconds(60);
  Limits limits;
};

class Connection {
 public:
  Connection(Loop& loop, std::unique_ptr<Stream> stream, ExportDirectory& exports, BufferPool& pool,
             ConnectionOptions options);
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// Until the client has left or was cut off, and every request of it has ended. Says in the log
  /// why a client that did not leave by itself was cut off.
  Task<> serve();

  /// Ends soon: a handshake at once, transmission when the requests under way have been answered.
  void drain();
  /// Ends as soon as what is under way in the export has ended; nothing is answered any more.
  void cut();

 private:
  Task<Result<void>> handshake_and_transmit();
  Task<Result<bool>> negotiate();
  Task<Result<Handshake::Step>> take_step(Handshake::Step step);
  Task<Result<Handshake::Step>> receive();
  Task<Handshake::Step> find_export();
  Task<Result<void>> start_tls();
  Task<> close();

  Loop& loop_;
  std::string peer_;
  std::unique_ptr<Stream> stream_;
  Stream* transport_;  // the accepted stream, below TLS; null once it has gone
  ExportDirectory& exports_;
  BufferPool& pool_;
  const ConnectionOptions options_;
  ReceiveBuffer input_;
  Handshake handshake_;
  std::shared_ptr<Export> export_;
  std::string export_found_as_;
  std::optional<Transmission> transmission_;
  bool ending_ = false;
};

}  // namespace berth::nbd
