// host.*: the daemon and its machine.

#include <utility>

#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "control/host_doctor.h"
#include "control/operations.h"
#include "control/spawn.h"
#include "control/version.h"
#include "machine/host/host_swap.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;

constexpr Milliseconds jobs_end_patience{30'000};

Async<Result<Json>> host_info(Services& services, Json /*params*/) {
  const auto volumes = CO_TRY(co_await services.volumes.list());
  utsname names{};
  struct sysinfo memory{};
  struct statvfs space{};
  ::uname(&names);
  ::sysinfo(&memory);
  if (::statvfs(services.state_dir.c_str(), &space) != 0) {
    co_return errno_failure(
        errno, fmt::format("cannot look at the state directory '{}'", services.state_dir));
  }
  co_return Json{{"version", program_version()},
                 {"api_version", api_version},
                 {"hostname", names.nodename},
                 {"kernel", names.release},
                 {"cpus", ::sysconf(_SC_NPROCESSORS_ONLN)},
                 {"memory_bytes", std::uint64_t{memory.totalram} * memory.mem_unit},
                 {"pid", ::getpid()},
                 {"started_at", services.started_at},
                 {"state_dir", services.state_dir},
                 {"run_dir", services.run_dir},
                 {"state_bytes_free", std::uint64_t{space.f_bavail} * space.f_frsize},
                 {"state_bytes_total", std::uint64_t{space.f_blocks} * space.f_frsize},
                 {"volumes", volumes.size()},
                 {"keepers", services.keepers.open_count()},
                 {"jobs_running", services.jobs.running()},
                 {"last_event", services.events.last()}};
}

Async<Result<Json>> host_doctor(Services& services, Json /*params*/) {
  machine::HostView host{.state_dir = services.state_dir,
                         .run_dir = services.run_dir,
                         .api_socket = services.run_dir + "/api.sock"};
  co_return co_await on_worker(services.workers,
                               [host = std::move(host)] { return host_report(host); });
}

Json encode(const machine::HostSwap::Status& status) {
  Json areas = Json::array();
  for (const auto& [area, is_ours] : status.areas) {
    areas.push_back({{"name", area.name},
                     {"kind", area.zram() ? "zram" : area.type},
                     {"size", area.size_bytes},
                     {"used", area.used_bytes},
                     {"ours", is_ours}});
  }
  return {{"areas", std::move(areas)}, {"has_zram", status.has_zram}, {"zswap", status.zswap}};
}

Async<Result<Json>> host_swap(Services& services, Json params) {
  const machine::HostSwap swap(
      {.state_dir = services.state_dir, .run_dir = services.run_dir, .api_socket = {}});
  co_return co_await on_worker(services.workers, [swap, params]() -> Result<Json> {
    const std::uint64_t zram = params.value("zram", std::uint64_t{0});
    const std::uint64_t file = params.value("file", std::uint64_t{0});
    const std::string zswap = params.value("zswap", std::string("keep"));
    if (params.value("undo", false)) TRY(swap.undo());
    if (zswap != "keep") TRY(swap.set_zswap(zswap == "on"));
    if (zram != 0) TRY(swap.add_zram(zram));
    if (file != 0) TRY(swap.add_file(file));
    return encode(swap.status());
  });
}

Async<Result<Json>> host_shutdown(Services& services, Json params) {
  Keepers::Stopped stopped;
  std::size_t ended = 0;
  if (params.value("machines", false)) {
    ended = co_await services.containers.stop_all(false);
    ended += co_await services.machines.stop_all(false);
  }
  if (params.value("keepers", false)) {
    co_await services.jobs.end_all(jobs_end_patience);
    ended += co_await services.containers.stop_all(true);
    ended += co_await services.machines.stop_all(true);
    stopped = co_await services.keepers.stop_all();
  }
  services.request_end();
  if (!stopped.failed.empty()) {
    co_return failure(ErrorKind::timed_out,
                      fmt::format("the daemon ends, but {} of its keepers did not in time: {}",
                                  stopped.failed.size(), fmt::join(stopped.failed, ", ")));
  }
  co_return Json{{"keepers_stopped", stopped.ended}, {"machines_stopped", ended}};
}

}  // namespace

HandlerTable host_handlers() {
  return {{"host.info", host_info},
          {"host.doctor", host_doctor},
          {"host.swap", host_swap},
          {"host.shutdown", host_shutdown}};
}

}  // namespace berth::control
