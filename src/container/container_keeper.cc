#include "container/container_keeper.h"

#include <memory>
#include <utility>

#include <unistd.h>

#include "async/socket.h"
#include "container/attach_server.h"
#include "container/container.h"
#include "container/container_methods.h"
#include "machine/layout.h"
#include "machine/vm/guest_keeper.h"

namespace berth::container {
namespace {

constexpr Duration last_readers_timeout = std::chrono::seconds(10);

class ContainerKeeper final : public machine::GuestKeeper {
 public:
  ContainerKeeper(UringLoop& loop, Signals& signals, const ContainerKeeperOptions& options)
      : GuestKeeper(loop, signals, identity({options.run_dir}, options.container)),
        run_{options.run_dir},
        container_(
            loop,
            {.name = options.container,
             .state_dir = options.state_dir,
             .run = run_,
             .memory_dir = options.memory_dir,
             .preload = options.preload,
             .listening = take_inherited(options.listen_fds)},
            [this](const char* event, std::string message) { report(event, std::move(message)); }),
        attach_(loop, container_),
        methods_(loop, server(), container_,
                 [this](const std::string& name) { rename(identity(run_, name)); }) {}

 private:
  static Identity identity(const ContainerRunLayout& run, const std::string& name) {
    return {.noun = "container",
            .name = name,
            .directory = run.container(name),
            .lock_file = run.lock_file(name),
            .control_socket = run.control_socket(name)};
  }
  Result<void> serve_others() override {
    TRY(machine::check_socket_path(run_.control_socket(name())));
    TRY(machine::check_socket_path(run_.attach_socket(name())));
    // The name is ours: a socket that is there is a dead keeper's.
    ::unlink(run_.attach_socket(name()).c_str());
    serves_attach_ = true;
    attach_.serve(TRY(SocketListener::listen_unix(loop(), run_.attach_socket(name()))));
    return {};
  }
  Task<Result<bool>> adopt() override { return container_.adopt(); }
  bool is_on() const override { return container_.is_on(); }
  Task<> guest_changed() override { co_await container_.changed(); }
  void open() override { methods_.open(); }
  Task<> everybody_heard() override { return attach_.drained(last_readers_timeout); }
  std::vector<std::string> logs() const override {
    return is_on() ? container_.logs() : std::vector<std::string>();
  }
  Task<> close_clients() override {
    methods_.close();
    co_return;
  }
  Task<> close_guest() override {
    co_await attach_.close();
    if (container_.is_waiting()) co_await container_.discard();
    co_await container_.close();
    // Else it is that of another keeper.
    if (serves_attach_) ::unlink(run_.attach_socket(name()).c_str());
  }

  const ContainerRunLayout run_;
  Container container_;
  AttachServer attach_;
  ContainerMethods methods_;
  bool serves_attach_ = false;
};

}  // namespace

int run_container_keeper(const ContainerKeeperOptions& options) {
  return machine::run_guest_keeper(
      "container", options.container, [&](UringLoop& loop, Signals& signals) {
        return std::make_unique<ContainerKeeper>(loop, signals, options);
      });
}

}  // namespace berth::container
