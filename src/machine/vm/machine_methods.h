// The control socket's methods that work on a machine (docs/formats/machine-control.md): what each
// asks of it, and what is undone when the one who asked goes away.
#pragma once

#include <string>

#include "machine/control_server.h"
#include "machine/vm/machine.h"
#include "machine/vm/memory_save.h"
#include "machine/vm/quiescence.h"

namespace berth::machine {

class MachineMethods {
 public:
  /// Adds the methods to the server. All of them outlive it.
  MachineMethods(UringLoop& loop, ControlServer& server, Machine& machine, Quiescence& quiescence,
                 MemorySave& save);
  MachineMethods(const MachineMethods&) = delete;
  MachineMethods& operator=(const MachineMethods&) = delete;

  /// Requests are answered from now on.
  void open() { is_open_ = true; }
  /// Undoes what is half way, and waits for it.
  Task<> close();

 private:
  using Method = Task<Result<Json>> (MachineMethods::*)(ControlCall&);
  void add(ControlServer& server, const char* name, Method method);
  Task<Result<Json>> guarded(Method method, ControlCall& call);
  Task<Result<Json>> start(ControlCall& call);
  Task<Result<Json>> stop(ControlCall& call);
  Task<Result<Json>> suspend(ControlCall& call);
  Task<Result<Json>> resume(ControlCall& call);
  Task<Result<Json>> info(ControlCall& call);
  Task<Result<Json>> attach(ControlCall& call);
  Task<Result<Json>> detach(ControlCall& call);
  Task<Result<Json>> limit(ControlCall& call);
  Task<Result<Json>> freeze(ControlCall& call);
  Task<Result<Json>> thaw(ControlCall& call);
  Task<Result<Json>> save_begin(ControlCall& call);
  Task<Result<Json>> save_finish(ControlCall& call);
  Task<Result<Json>> save_abandon(ControlCall& call);
  Task<> undo();

  Machine& machine_;
  Quiescence& quiescence_;
  MemorySave& save_;
  Gate gate_;
  bool is_open_ = false;
};

}  // namespace berth::machine
