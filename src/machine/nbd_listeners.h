// The NBD listeners of a keeper: started and stopped by clients of the control socket, remembered
// over the keeper's death, and, where the daemon holds their sockets too, there without a gap.
//
// On the volume's loop. Methods serve.start, serve.stop and serve.list
// (docs/formats/keeper-control.md).
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "async/event.h"
#include "async/socket.h"
#include "base/fd.h"
#include "disk/volume.h"
#include "machine/control_messages.h"
#include "machine/control_server.h"
#include "machine/listener_address.h"
#include "machine/volume_export.h"
#include "nbd/server.h"

namespace berth::machine {

constexpr std::size_t nbd_listeners_max = 64;

class NbdListeners {
 public:
  struct Options {
    std::string volume;          // its name
    std::string serve_file;      // where the listeners are remembered
    std::string private_socket;  // for other keepers: checkpoints only, not remembered; "" for none
    std::shared_ptr<CheckpointReaders> readers;
  };
  /// Adds the methods to the server. `inherited` are sockets that listen already; they wait for a
  /// listener with their address. Loop and server outlive it.
  NbdListeners(UringLoop& loop, ControlServer& server, Options options, std::vector<Fd> inherited);
  NbdListeners(const NbdListeners&) = delete;
  NbdListeners& operator=(const NbdListeners&) = delete;
  ~NbdListeners();

  /// Serves the private socket and what is remembered; what cannot be served again is said in the
  /// log. The volume outlives close(). Fails only where the private socket cannot be had.
  Task<Result<void>> open(disk::Volume& volume);
  /// Disconnects everybody once what they asked for is answered. Forgets nothing: sockets and
  /// memory stay for the next keeper, but for the private socket.
  Task<> close();

 private:
  struct Entry;
  using Method = Task<Result<Json>> (NbdListeners::*)(ControlCall&);
  void add(ControlServer& server, const char* name, Method method);
  Task<Result<Json>> guarded(Method method, ControlCall& call);
  Task<Result<Json>> start(ControlCall& call);
  Task<Result<Json>> stop(ControlCall& call);
  Task<Result<Json>> list(ControlCall& call);

  Task<Result<Entry*>> serve(ServeRequest request);
  Task<Result<std::unique_ptr<SocketListener>>> take_listener(const ServeRequest& request);
  Result<void> check_export(const ServeRequest& request) const;
  Result<void> serve_private();
  std::string uri_of(const Entry& entry) const;
  Task<> serve_remembered();
  Result<std::vector<ServeRequest>> load() const;
  Result<void> save() const;

  UringLoop& loop_;
  const Options options_;
  std::vector<Fd> inherited_;
  disk::Volume* volume_ = nullptr;                         // null: not open
  std::map<std::string, std::unique_ptr<Entry>> entries_;  // by path or host:port
  std::map<std::string, ServeRequest> not_served_;  // remembered, and could not be served again
  std::unique_ptr<VolumeExports> private_exports_;
  std::unique_ptr<nbd::Server> private_server_;
  AsyncMutex changing_;
};

}  // namespace berth::machine
