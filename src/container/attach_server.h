// Serves a container's attach socket (docs/formats/containers.md, "Attach"): clients that see and
// feed the main process, and those that have another one started.
//
// On one loop. A client that is slow is waited for, and holds up nothing but itself: the output of
// the main process is read from its log.
#pragma once

#include <list>
#include <memory>

#include "async/event.h"
#include "async/gate.h"
#include "async/stream.h"
#include "container/container.h"

namespace berth::container {

constexpr std::size_t attach_clients_max = 64;

class AttachServer {
 public:
  /// The container outlives it.
  AttachServer(UringLoop& loop, Container& container);
  AttachServer(const AttachServer&) = delete;
  AttachServer& operator=(const AttachServer&) = delete;
  ~AttachServer();

  void serve(std::unique_ptr<Listener> listener);
  /// Until every client of a container that has ended has been told so, or `patience` is over.
  Task<> drained(Duration patience);
  /// Disconnects everybody.
  Task<> close();

 private:
  class Client;

  Task<> accept_clients();
  Task<> serve_client(std::unique_ptr<berth::Stream> stream);

  UringLoop& loop_;
  Container& container_;
  std::unique_ptr<Listener> listener_;
  std::list<Client*> clients_;
  Client* input_ = nullptr;  // whose input the main process gets
  Event moved_;
  Gate tasks_;
  bool closing_ = false;
};

}  // namespace berth::container
