// The control socket's methods that work on a container (docs/formats/containers.md, "Control").
#pragma once

#include <functional>
#include <string>

#include "async/gate.h"
#include "container/container.h"
#include "machine/control_server.h"

namespace berth::container {

class ContainerMethods {
 public:
  /// Adds the methods to the server. Both outlive it.
  ContainerMethods(UringLoop& loop, machine::ControlServer& server, Container& container,
                   std::function<void(const std::string& name)> renamed);
  ContainerMethods(const ContainerMethods&) = delete;
  ContainerMethods& operator=(const ContainerMethods&) = delete;

  /// Requests are answered from now on, or no more.
  void open() { is_open_ = true; }
  void close() { is_open_ = false; }

 private:
  using Method = Task<Result<machine::Json>> (ContainerMethods::*)(machine::ControlCall&);
  Task<Result<machine::Json>> run(Method method, machine::ControlCall& call);
  void add(machine::ControlServer& server, const char* name, Method method);

  Task<Result<machine::Json>> start(machine::ControlCall& call);
  Task<Result<machine::Json>> prepare(machine::ControlCall& call);
  Task<Result<machine::Json>> assume(machine::ControlCall& call);
  Task<Result<machine::Json>> stop(machine::ControlCall& call);
  Task<Result<machine::Json>> kill(machine::ControlCall& call);
  Task<Result<machine::Json>> run_program(machine::ControlCall& call);
  Task<Result<machine::Json>> probe(machine::ControlCall& call);
  Task<Result<machine::Json>> copy_template(machine::ControlCall& call);
  Task<Result<machine::Json>> become_template(machine::ControlCall& call);
  Task<Result<machine::Json>> pause(machine::ControlCall& call);
  Task<Result<machine::Json>> resume(machine::ControlCall& call);
  Task<Result<machine::Json>> info(machine::ControlCall& call);

  UringLoop& loop_;
  Container& container_;
  const std::function<void(const std::string& name)> renamed_;
  bool is_open_ = false;
};

}  // namespace berth::container
