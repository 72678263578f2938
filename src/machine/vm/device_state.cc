#include "machine/vm/device_state.h"

#include <array>
#include <fstream>
#include <iterator>

#include <unistd.h>

#include <fmt/format.h>

#include "async/deadline.h"
#include "machine/control_messages.h"

namespace berth::machine {
namespace {

constexpr Duration transfer_timeout = std::chrono::seconds(30);
constexpr Duration connect_timeout = std::chrono::seconds(5);
constexpr Duration poll_interval = std::chrono::milliseconds(1);
constexpr std::size_t chunk = std::size_t{256} << 10;

Json ignore_shared() {
  return {{"capabilities", Json::array({{{"capability", "x-ignore-shared"}, {"state", true}}})}};
}

/// What query-migrate says, once it is over one way or the other.
Task<Result<void>> await_migration(UringLoop& loop, QemuMonitor& machine) {
  const Instant deadline = loop.now() + transfer_timeout;
  while (loop.now() < deadline) {
    const Json answer = CO_TRY(co_await machine.command("query-migrate", Json::object()));
    const std::string status = CO_TRY(text_param(answer, "status"));
    if (status == "completed") co_return Result<void>{};
    if (status == "failed" || status == "cancelled") {
      co_return failure(ErrorKind::precondition,
                        fmt::format("QEMU could not transfer the state of its devices: {}",
                                    answer.value("error-desc", std::string("no reason given"))));
    }
    co_await loop.sleep(poll_interval);
  }
  co_return failure(ErrorKind::timed_out, "QEMU did not transfer the state of its devices in time");
}

}  // namespace

Result<std::string> read_device_state(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string state{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file.is_open() || file.bad() || state.empty() || state.size() > device_state_max)
    return failure(ErrorKind::corrupt, fmt::format("there is no device state in '{}'", path));
  return state;
}

std::string device_state_socket(const std::string& qemu_directory) {
  return qemu_directory + "/devices.sock";
}

DeviceStateReceiver::DeviceStateReceiver(UringLoop& loop, QemuMonitor& machine, std::string path,
                                         std::unique_ptr<SocketListener> listener)
    : loop_(loop), machine_(machine), path_(std::move(path)), listener_(std::move(listener)) {}

DeviceStateReceiver::~DeviceStateReceiver() { ::unlink(path_.c_str()); }

Task<Result<std::unique_ptr<DeviceStateReceiver>>> DeviceStateReceiver::prepare(
    UringLoop& loop, QemuMonitor& machine) {
  const std::string path = device_state_socket(machine.qemu_directory());
  ::unlink(path.c_str());
  auto listener = CO_TRY(SocketListener::listen_unix(loop, path));
  if (::geteuid() == 0 && ::chown(path.c_str(), machine.qemu_user(), static_cast<gid_t>(-1)) != 0)
    co_return errno_failure(errno, fmt::format("cannot give '{}' to QEMU's user", path));
  CO_TRY(co_await machine.command("migrate-set-capabilities", ignore_shared()));
  co_return std::unique_ptr<DeviceStateReceiver>(
      new DeviceStateReceiver(loop, machine, path, std::move(listener)));
}

Task<Result<std::string>> DeviceStateReceiver::receive() {
  CO_TRY(co_await machine_.command("migrate", {{"uri", "unix:" + path_}}));
  Deadline accepting(loop_, connect_timeout, [this] { listener_->close(); });
  auto accepted = co_await listener_->accept();
  co_await accepting.stop();
  const auto stream = CO_TRY(std::move(accepted));
  std::string state;
  Deadline reading(loop_, transfer_timeout, [&stream] { stream->shutdown(); });
  Result<void> outcome;
  while (true) {
    const std::size_t before = state.size();
    state.resize(before + chunk);
    const auto count = co_await stream->read_some(
        MutableBytes(reinterpret_cast<std::byte*>(state.data() + before), chunk));
    state.resize(before + count.value_or(0));
    if (!count) outcome = failure(count.error());
    if (!count || *count == 0) break;
    if (state.size() > device_state_max) {
      outcome = failure(ErrorKind::limit,
                        "the state of the devices is too large: its memory may be in it");
      break;
    }
  }
  co_await reading.stop();
  CO_TRY(outcome);
  co_return state;
}

Task<Result<void>> DeviceStateReceiver::completed() {
  co_return co_await await_migration(loop_, machine_);
}

Task<Result<std::string>> take_device_state(UringLoop& loop, QemuMonitor& machine) {
  const auto receiver = CO_TRY(co_await DeviceStateReceiver::prepare(loop, machine));
  std::string state = CO_TRY(co_await receiver->receive());
  CO_TRY(co_await receiver->completed());
  co_return state;
}

Task<Result<void>> load_device_state(UringLoop& loop, QemuMonitor& machine, std::string state) {
  CO_TRY(co_await machine.command("migrate-set-capabilities", ignore_shared()));
  const std::string path = device_state_socket(machine.qemu_directory());
  CO_TRY(co_await machine.command("migrate-incoming", {{"uri", "unix:" + path}}));
  const auto stream = CO_TRY(co_await connect_unix(loop, path, connect_timeout));
  const std::array<Bytes, 1> parts = {
      Bytes(reinterpret_cast<const std::byte*>(state.data()), state.size())};
  Deadline writing(loop, transfer_timeout, [&stream] { stream->shutdown(); });
  auto written = co_await stream->write_all(parts);
  if (written) written = co_await stream->finish_writing();
  co_await writing.stop();
  ::unlink(path.c_str());
  // What QEMU says about a state that does not fit is better than that it hung up.
  CO_TRY(co_await await_migration(loop, machine));
  co_return written;
}

}  // namespace berth::machine
