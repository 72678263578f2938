#include "machine/keeper.h"

#include <array>
#include <cerrno>
#include <csignal>
#include <memory>
#include <utility>
#include <vector>

#include <sys/resource.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/directories.h"
#include "async/event.h"
#include "async/gate.h"
#include "async/signals.h"
#include "async/socket.h"
#include "async/uring_file.h"
#include "async/uring_loop.h"
#include "base/fd.h"
#include "base/log.h"
#include "disk/volume.h"
#include "machine/backing.h"
#include "machine/control_server.h"
#include "machine/keeper_events.h"
#include "machine/layout.h"
#include "machine/live_store.h"
#include "machine/nbd_listeners.h"
#include "machine/small_file.h"
#include "machine/volume_directory.h"
#include "machine/volume_methods.h"
#include "machine/volume_store.h"

namespace berth::machine {
namespace {

constexpr Duration last_answers_timeout =
    std::chrono::seconds(2);  // for clients to read them, at the end
constexpr std::size_t remembered_events_max = 16;
constexpr rlim_t open_files_wanted = 16384;

const char* name_of(disk::VolumeEvent::Kind kind) {
  switch (kind) {
    case disk::VolumeEvent::Kind::recovered_from_power_loss: return "recovered_from_power_loss";
    case disk::VolumeEvent::Kind::checkpoint_lost: return "checkpoint_lost";
    case disk::VolumeEvent::Kind::refpoints_void: return "refpoints_void";
    case disk::VolumeEvent::Kind::io_failed: return "io_failed";
  }
  return "unknown";
}

/// One keeper's life, from its lock to the clean close of the volume.
class Keeper {
 public:
  Keeper(UringLoop& loop, Signals& signals, const KeeperOptions& options, std::vector<Fd> inherited)
      : loop_(loop),
        signals_(signals),
        options_(options),
        state_{options.state_dir},
        run_{options.run_dir},
        started_at_(loop.wall_time()),
        tasks_(loop),
        stop_requested_(loop),
        volume_closed_(loop),
        server_(loop),
        methods_(loop, server_, {.volume = options.volume, .state = state_, .readers = readers_}),
        listeners_(loop, server_,
                   {.volume = options.volume,
                    .serve_file = run_.serve_file(options.id),
                    .private_socket = run_.volume_socket(options.volume),
                    .readers = readers_},
                   std::move(inherited)) {
    server_.add("hello", [this](ControlCall& /*call*/) { return hello(); });
    server_.add("shutdown", [this](ControlCall& /*call*/) { return shutdown(); });
  }

  Task<Result<void>> run() {
    CO_TRY(take_id());
    CO_TRY(make_directories(run_.volumes()));
    CO_TRY(serve_control());
    tasks_.spawn(watch_signals());

    outcome_ = co_await open_volume();
    if (outcome_) {
      while (!stopping_) co_await stop_requested_.wait();
    }
    co_await close_volume();
    co_await say_goodbye();
    co_return outcome_;
  }

 private:
  Result<void> take_id() {
    TRY(make_directories(run_.keeper(options_.id)));
    id_lock_ =
        TRY(take_lock_file(run_.lock_file(options_.id),
                           fmt::format("another keeper with the id '{}' is running", options_.id)));
    return {};
  }

  /// The id is ours, so a socket that is there is a dead keeper's; it may take connections for a
  /// while yet.
  Result<void> serve_control() {
    const std::string path = run_.control_socket(options_.id);
    ::unlink(path.c_str());
    remove_stale_image_sockets(run_.keeper(options_.id));
    server_.serve(TRY(SocketListener::listen_unix(loop_, path)));
    return {};
  }

  Task<> watch_signals() {
    while (true) {
      const auto number = co_await signals_.next();
      if (!number) co_return;
      request_stop(*number == SIGTERM ? "SIGTERM" : "SIGINT");
    }
  }

  void request_stop(const char* by) {
    if (std::exchange(stopping_, true)) return;
    log_info("asked to end by {}", by);
    stop_requested_.notify_all();
  }

  // --- The volume's life.

  Task<Result<void>> open_volume() {
    const std::string path = state_.volume(options_.volume);
    if (!path_exists(path)) {
      co_return failure(ErrorKind::not_found, fmt::format("there is no volume '{}' in '{}'",
                                                          options_.volume, state_.volumes()));
    }
    directory_ = CO_TRY(open_directory(loop_, path, false));
    live_ = CO_TRY(open_live_store(run_, options_.volume));
    log_info("the live map is in {}", CO_TRY(live_directory(run_, options_.volume)));

    volume_ = CO_TRY(co_await disk::Volume::open(environment(), open_options()));
    const disk::VolumeInfo info = volume_->info();
    refresh_summary(state_, options_.volume, info);
    CO_TRY(co_await listeners_.open(*volume_));
    methods_.open(*volume_);
    is_open_ = true;
    log_info("the volume '{}' is open: {} bytes, epoch {}, {} checkpoints, {} reference points",
             options_.volume, info.size, info.epoch, info.checkpoints, info.refpoints);
    co_return Result<void>{};
  }

  disk::OpenOptions open_options() const {
    return {.direct = options_.direct, .hot_regions_max = options_.hot_regions_max};
  }

  disk::VolumeEnvironment environment() {
    // A volume that comes from another host may name one of that host's: whatever is called so here
    // is not what it stands on.
    const auto resolve = [this](const std::string& volume,
                                const std::string& checkpoint) -> Result<std::string> {
      if (is_pinned(state_, volume, checkpoint, options_.volume)) return run_.volume_socket(volume);
      return failure(ErrorKind::not_found,
                     fmt::format("the volume '{}' does not stand on '{}@{}' on this host",
                                 options_.volume, volume, checkpoint));
    };
    return {.loop = loop_,
            .directory = *directory_,
            .live_store = *live_,
            .random = random_,
            .open_backing = make_backing_opener(
                loop_, {.volume_socket = resolve, .socket_directory = run_.keeper(options_.id)}),
            .report_event = [this](const disk::VolumeEvent& event) { report(event); }};
  }

  void report(const disk::VolumeEvent& event) {
    log_warning("{}: {}", name_of(event.kind), event.message);
    events_.tell(name_of(event.kind), event.message);
  }

  /// What comes in first, what it stands on last; also after an open that got half way.
  Task<> close_volume() {
    stopping_ = true;
    server_.send_event("keeper_closing",
                       fmt::format("the volume '{}' is being closed", options_.volume));
    server_.cancel_calls();
    Gate closing(loop_);
    closing.spawn(methods_.close());
    closing.spawn(listeners_.close());
    co_await closing.drained();
    if (volume_) {
      auto closed = co_await volume_->close();
      if (outcome_ && !closed) outcome_ = std::move(closed);
      volume_.reset();
    }
    if (std::exchange(live_, nullptr)) release_live_store(run_, options_.volume);
    directory_.reset();
    is_closed_ = true;
    volume_closed_.notify_all();
  }

  Task<> say_goodbye() {
    signals_.close();
    co_await server_.close(last_answers_timeout);
    co_await tasks_.drained();
    ::unlink(run_.control_socket(options_.id).c_str());
  }

  // --- Methods of the control socket.

  Task<Result<Json>> hello() {
    co_return Json{{"version", BERTH_VERSION},
                   {"pid", ::getpid()},
                   {"id", options_.id},
                   {"volume", options_.volume},
                   {"protocol", control_protocol_version},
                   {"volume_open", is_open_ && !stopping_},
                   {"started_at", format_time(started_at_)},
                   {"events", events_.past()}};
  }

  Task<Result<Json>> shutdown() {
    request_stop("a client");
    while (!is_closed_) co_await volume_closed_.wait();
    if (!outcome_) co_return failure(outcome_.error());
    co_return Json::object();
  }

  UringLoop& loop_;
  Signals& signals_;
  const KeeperOptions& options_;
  const StateLayout state_;
  const RunLayout run_;
  const std::chrono::system_clock::time_point started_at_;
  Fd id_lock_;
  SystemRandom random_;
  Gate tasks_;
  Event stop_requested_;
  bool stopping_ = false;
  bool is_open_ = false;
  Event volume_closed_;
  bool is_closed_ = false;
  Result<void> outcome_;
  std::shared_ptr<CheckpointReaders> readers_ = std::make_shared<CheckpointReaders>();
  ControlServer server_;
  KeeperEvents events_{server_, loop_, remembered_events_max};  // of the volume
  std::unique_ptr<Directory> directory_;
  std::unique_ptr<FileSharedMemoryStore> live_;
  std::unique_ptr<disk::Volume> volume_;
  VolumeMethods methods_;
  NbdListeners listeners_;
};

/// Every client of NBD is a descriptor, and the usual soft limit is 1024.
void raise_open_files_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= open_files_wanted) return;
  limit.rlim_cur = std::min(limit.rlim_max, open_files_wanted);
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

Result<void> run(const KeeperOptions& options, std::vector<Fd> inherited) {
  TRY(check_name("keeper", options.id));
  TRY(check_name("volume", options.volume));
  const auto loop = TRY(UringLoop::create());
  const std::array<int, 2> numbers = {SIGTERM, SIGINT};
  const auto signals = TRY(Signals::create(*loop, numbers));
  Keeper keeper(*loop, *signals, options, std::move(inherited));
  return loop->run_until_complete(keeper.run());
}

}  // namespace

int run_keeper(const KeeperOptions& options) {
  std::signal(SIGPIPE, SIG_IGN);  // a client that has gone is an error of its connection
  raise_open_files_limit();
  const auto outcome = run(options, take_inherited(options.listen_fds));
  if (!outcome) {
    // The daemon reads this line: see docs/formats/keeper-control.md.
    log_error("keeper {}: {}: cannot keep the volume '{}': {}", options.id,
              to_string(outcome.error().kind()), options.volume, outcome.error().message());
    return 1;
  }
  log_info("ended");
  return 0;
}

}  // namespace berth::machine
