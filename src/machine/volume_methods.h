// The control socket's methods that work on the volume: what each asks of the engine, and what must
// hold before.
//
// On the volume's loop. Between open() and close() requests are answered; before and after they get
// `precondition`.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "async/event.h"
#include "async/task.h"
#include "async/uring_loop.h"
#include "disk/volume.h"
#include "machine/control_server.h"
#include "machine/layout.h"
#include "machine/volume_export.h"

namespace berth::machine {

class VolumeMethods {
 public:
  struct Options {
    std::string volume;  // its name
    StateLayout state;
    std::shared_ptr<CheckpointReaders> readers;  // of all NBD listeners
  };
  /// Adds the methods to the server. Loop and server outlive it.
  VolumeMethods(UringLoop& loop, ControlServer& server, Options options);
  VolumeMethods(const VolumeMethods&) = delete;
  VolumeMethods& operator=(const VolumeMethods&) = delete;

  /// The volume outlives close().
  void open(disk::Volume& volume);
  /// Waits for the requests that are running.
  Task<> close();

 private:
  using Method = Task<Result<Json>> (VolumeMethods::*)(ControlCall&);
  void add(ControlServer& server, const char* name, Method method);
  Task<Result<Json>> guarded(Method method, ControlCall& call);

  Task<Result<Json>> info(ControlCall& call);
  Task<Result<Json>> resize(ControlCall& call);
  Task<Result<Json>> populate(ControlCall& call);
  Task<Result<Json>> populate_all(ControlCall& call, std::uint64_t rate);
  Task<Result<Json>> checkpoint_create(ControlCall& call);
  Task<Result<Json>> checkpoint_list(ControlCall& call);
  Task<Result<Json>> checkpoint_delete(ControlCall& call);
  Task<Result<Json>> checkpoint_revert(ControlCall& call);
  Task<Result<Json>> checkpoint_convert(ControlCall& call);
  Task<Result<Json>> checkpoint_export(ControlCall& call);
  Task<Result<Json>> refpoint_create(ControlCall& call);
  Task<Result<Json>> refpoint_list(ControlCall& call);
  Task<Result<Json>> refpoint_delete(ControlCall& call);
  Task<Result<Json>> changes(ControlCall& call);
  Task<Result<Json>> cut_begin(ControlCall& call);
  Task<Result<Json>> cut_commit(ControlCall& call);
  Task<Result<Json>> cut_abort(ControlCall& call);
  Task<Result<Json>> group_settle(ControlCall& call);

  Result<void> check_not_lent(const std::string& checkpoint) const;

  UringLoop& loop_;
  const Options options_;
  disk::Volume* volume_ = nullptr;  // null: not open
  bool populating_ = false;
  std::size_t running_ = 0;
  Event ended_;
};

}  // namespace berth::machine
