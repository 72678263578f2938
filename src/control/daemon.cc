#include "control/daemon.h"

#include <chrono>
#include <cstring>
#include <filesystem>
#include <optional>

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/log.h"
#include "base/units.h"
#include "container/image_store.h"
#include "control/configuration.h"
#include "control/exit_code.h"
#include "control/http_server.h"
#include "control/keeper_process.h"
#include "control/machine_steps.h"
#include "control/operations.h"
#include "control/parking.h"
#include "control/spawn.h"
#include "control/version.h"
#include "memory/preload.h"

namespace berth::control {
namespace {

namespace asio = boost::asio;

constexpr std::size_t worker_threads = 4;
constexpr std::size_t image_maker_threads = 2;    // each waits for a program that uses a CPU
constexpr Milliseconds take_over_patience{5000};  // then requests are taken while it goes on
constexpr Milliseconds jobs_patience{5000};       // at the end
constexpr Milliseconds requests_patience{3000};

Result<void> make_private_directory(const std::string& path, int mode) {
  std::error_code error;
  const bool made = std::filesystem::create_directories(path, error);
  if (!error && made)
    std::filesystem::permissions(path, static_cast<std::filesystem::perms>(mode), error);
  if (error)
    return errno_failure(error.value(), fmt::format("cannot make the directory '{}'", path));
  return {};
}

/// One daemon per state directory, for as long as the descriptor lives.
Result<Fd> lock_state(const std::string& state_dir) {
  const std::string path = state_dir + "/daemon.lock";
  Fd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock) return errno_failure(errno, fmt::format("cannot open '{}'", path));
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) == 0) return lock;
  if (errno != EWOULDBLOCK) return errno_failure(errno, fmt::format("cannot lock '{}'", path));
  return failure(ErrorKind::in_use,
                 fmt::format("another daemon has the state directory '{}'", state_dir));
}

/// sd_notify's protocol: one datagram. No error: whoever waits has a limit of its own.
void notify_ready() {
  const char* path = std::getenv("NOTIFY_SOCKET");
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  if (path == nullptr || std::strlen(path) >= sizeof address.sun_path || path[0] == '\0') return;
  std::strcpy(address.sun_path, path);
  auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + std::strlen(path) + 1);
  if (path[0] == '@') {
    address.sun_path[0] = '\0';
    --length;
  }
  const Fd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  constexpr std::string_view ready = "READY=1";
  (void)::sendto(socket.get(), ready.data(), ready.size(), MSG_NOSIGNAL,
                 reinterpret_cast<sockaddr*>(&address), length);
  ::unsetenv("NOTIFY_SOCKET");  // not for keepers
}

GuestPolicy guest_policy(const DaemonOptions& options) {
  return {.program = options.keeper_program,
          .state_dir = options.state_dir,
          .run_dir = options.run_dir,
          .memory_dir = options.memory_dir,
          .preload = memory::find_preload().value_or(std::string())};
}

class Daemon {
 public:
  Daemon(asio::io_context& io, const DaemonOptions& options, Configuration configuration,
         std::unique_ptr<Catalogue> catalogue)
      : options_(options),
        workers_(worker_threads),
        catalogue_(std::move(catalogue)),
        events_(io.get_executor()),
        volumes_(workers_, options.state_dir, options.run_dir),
        keepers_(io.get_executor(),
                 {.program = options.keeper_program,
                  .state_dir = options.state_dir,
                  .run_dir = options.run_dir,
                  .idle = options.keeper_idle},
                 volumes_, events_),
        machines_(io.get_executor(), workers_, guest_policy(options), keepers_, events_),
        containers_(io.get_executor(), workers_, guest_policy(options), keepers_, machines_,
                    events_),
        cuts_(io.get_executor(), workers_, *catalogue_, events_),
        images_(options.state_dir),
        kernels_(options.state_dir),
        image_makers_(image_maker_threads),
        templates_(io.get_executor(), workers_,
                   {.state_dir = options.state_dir,
                    .run_dir = options.run_dir,
                    .memory_dir = options.memory_dir},
                   containers_, images_, kernels_, events_),
        pool_(io.get_executor(), containers_, templates_, events_),
        parking_(io.get_executor(), std::move(configuration.parking), containers_, events_),
        jobs_(io.get_executor(), workers_, *catalogue_, events_),
        services_{.executor = io.get_executor(),
                  .workers = workers_,
                  .state_dir = options.state_dir,
                  .run_dir = options.run_dir,
                  .started_at = format_time(std::chrono::system_clock::now()),
                  .volumes = volumes_,
                  .keepers = keepers_,
                  .machines = machines_,
                  .cuts = cuts_,
                  .images = images_,
                  .image_makers = image_makers_,
                  .kernels = kernels_,
                  .containers = containers_,
                  .templates = templates_,
                  .pool = pool_,
                  .jobs = jobs_,
                  .events = events_,
                  .request_end =
                      [this] {
                        end_requested_.notify();
                        end_wanted_ = true;
                      }},
        server_(
            io.get_executor(),
            [this](HttpRequest request) { return answer_request(services_, std::move(request)); }),
        taken_over_(io.get_executor()),
        end_requested_(io.get_executor()),
        signals_(io, SIGTERM, SIGINT) {
    machines_.add_neighbours(containers_);
    machines_.add_neighbours(templates_);
    machines_.add_neighbours(pool_);
    containers_.on_wanted([this](std::string name) {
      start(services_.executor, awaken_for_port(services_, std::move(name)));
    });
  }

  /// The daemon's life; what it ends with.
  Async<Result<void>> live() {
    auto started = co_await begin();
    if (started) {
      asio::post(workers_, hold_program);
      signals_.async_wait([this](const boost::system::error_code& error, int /*signal*/) {
        if (!error) services_.request_end();
      });
      while (!end_wanted_) co_await end_requested_.wait();
    }
    co_await finish();
    co_return started;
  }

 private:
  Async<Result<void>> begin() {
    CO_TRY(co_await jobs_.load());
    container::ImageStore* images = &images_;
    // A store of images that cannot be used is no reason to leave machines alone.
    if (const auto opened = co_await on_worker(workers_, [images] { return images->open(); });
        !opened)
      log_warning("no images: {}", opened.error().message());
    container::KernelStore* kernels = &kernels_;
    if (const auto opened = co_await on_worker(workers_, [kernels] { return kernels->open(); });
        !opened)
      log_warning("no kernels: {}", opened.error().message());
    const std::vector<std::string> unsettled = CO_TRY(co_await cuts_.resolve());
    keepers_.set_opened_hook([this](KeeperChannel& channel, std::string volume) {
      return cuts_.settle_volume(channel, std::move(volume));
    });
    start(services_.executor, take_over(unsettled));
    if (!is_taken_over_) co_await taken_over_.wait_for(take_over_patience);
    CO_TRY(server_.listen_unix(options_.run_dir + "/api.sock"));
    if (!options_.listen.empty()) {
      const std::string address = CO_TRY(server_.listen_tls(options_.listen, {options_.tls_dir}));
      log_info("listening at https://{}", address);
    }
    log_info("berth {} is ready at {}/api.sock", program_version(), options_.run_dir);
    notify_ready();
    co_return Result<void>();
  }

  /// Finds the keepers that run, and has every volume hear of cuts that were decided without it.
  Async<void> take_over(std::vector<std::string> unsettled) {
    co_await keepers_.take_over();
    for (const std::string& volume : unsettled) {
      if (volumes_.check_exists(volume)) {
        const auto opened = co_await keepers_.use(volume);
        if (!opened) {
          events_.publish("cut_unsettled", {.volume = volume, .job = {}}, opened.error().message());
          continue;
        }
      }
      if (const auto marked = co_await cuts_.mark_resolved(volume); !marked)
        log_warning("{}", marked.error().message());
    }
    co_await machines_.take_over();
    co_await settle_machines(services_);
    co_await containers_.take_over();
    co_await templates_.take_over();
    co_await pool_.take_over();
    parking_.begin();
    is_taken_over_ = true;
    taken_over_.notify();
  }

  Async<void> finish() {
    log_info("ending; keepers go on");
    co_await jobs_.end_all(jobs_patience);
    events_.close();
    co_await server_.finish(requests_patience);
    co_await pool_.quit();
    containers_.quit();
    co_await parking_.quit();
    machines_.quit();
    keepers_.quit();
    boost::system::error_code ignored;
    signals_.cancel(ignored);
  }

  DaemonOptions options_;
  asio::thread_pool workers_;
  std::unique_ptr<Catalogue> catalogue_;
  EventLog events_;
  Volumes volumes_;
  Keepers keepers_;
  Machines machines_;
  Containers containers_;
  GroupCuts cuts_;
  container::ImageStore images_;
  container::KernelStore kernels_;
  asio::thread_pool image_makers_;
  Templates templates_;
  ClonePool pool_;
  Parking parking_;
  Jobs jobs_;
  Services services_;
  HttpServer server_;
  Wakeup taken_over_;
  Wakeup end_requested_;
  asio::signal_set signals_;
  bool is_taken_over_ = false;
  bool end_wanted_ = false;
};

Result<void> run(const DaemonOptions& options) {
  if (!options.listen.empty() && options.tls_dir.empty()) {
    return failure(ErrorKind::precondition,
                   "--listen needs --tls-dir: TCP is served with TLS and client certificates only");
  }
  Configuration configuration = TRY(load_configuration(options.configuration_file));
  TRY(make_private_directory(options.state_dir, 0750));
  TRY(make_private_directory(options.state_dir + "/volumes", 0750));
  TRY(make_private_directory(options.state_dir + "/machines", 0750));
  TRY(make_private_directory(options.run_dir, 0755));
  TRY(make_private_directory(options.run_dir + "/keepers", 0700));
  TRY(make_private_directory(options.memory_dir, 0711));
  const Fd lock = TRY(lock_state(options.state_dir));
  auto catalogue = TRY(Catalogue::open(options.state_dir + "/catalogue.sqlite"));

  asio::io_context io(1);
  Result<void> result;
  {
    Daemon daemon(io, options, std::move(configuration), std::move(catalogue));
    asio::co_spawn(io, daemon.live(),
                   [&](const std::exception_ptr& exception, Result<void> outcome) {
                     if (exception) std::terminate();
                     result = std::move(outcome);
                     io.stop();  // what still waits, for keepers that go on, is dropped
                   });
    io.run();
  }
  return result;
}

}  // namespace

int run_daemon(const DaemonOptions& options) {
  ::signal(SIGPIPE, SIG_IGN);
  Result<void> result;
  try {
    result = run(options);
  } catch (const std::exception& exception) {
    result =
        failure(ErrorKind::internal, fmt::format("an unexpected exception: {}", exception.what()));
  }
  if (result) return 0;
  fmt::print(stderr, "berth daemon: {}\n", result.error().message());
  return exit_code(result.error().kind());
}

}  // namespace berth::control
