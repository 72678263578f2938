// Keepers: the listeners, and our duplicates of their sockets.

#include <optional>
#include <set>

#include <fmt/format.h>

#include "base/log.h"
#include "control/keeper_state.h"
#include "control/keepers.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;

struct ListenerInfo {
  std::string uri;
  Json shown;
  Json address;
  int fd = -1;  // the keeper's
};

/// One entry of serve.list; nothing if it is not one.
std::optional<ListenerInfo> parse_listener(const Json& entry) {
  if (!entry.is_object() || !entry.contains("uri") || !entry["uri"].is_string())
    return std::nullopt;
  ListenerInfo info;
  info.uri = entry["uri"].get<std::string>();
  const char* transport = entry.contains("unix") ? "unix" : "tcp";
  const std::string address = entry.value(transport, std::string());
  info.address = {{transport, address}};
  info.shown = {{"uri", info.uri},
                {"transport", transport},
                {"address", address},
                {"export", entry.value("export", std::string())},
                {"tls", entry.value("tls", false)},
                {"read_only", entry.value("read_only", false)},
                {"connections", entry.value("connections", std::uint64_t{0})}};
  info.fd = entry.value("fd", -1);
  return info;
}

}  // namespace

/// Asks the keeper what it serves; takes duplicates of sockets that are new, and drops those that
/// are gone.
Async<Result<void>> Keepers::refresh_listeners(std::shared_ptr<Keeper> keeper) {
  const auto connection = keeper->connection;
  if (!connection) co_return failure(ErrorKind::disconnected, "the keeper is gone");
  const Json answer = CO_TRY(co_await connection->call("serve.list", Json::object(), {}));
  std::set<std::string> there;
  try {
    for (const Json& entry : answer.at("listeners")) {
      auto info = parse_listener(entry);
      if (!info) continue;
      there.insert(info->uri);
      Keeper::Listener& listener = keeper->listeners[info->uri];
      listener.shown = std::move(info->shown);
      listener.address = std::move(info->address);
      if (listener.held || info->fd < 0) continue;
      auto held = duplicate_from(keeper->process.pidfd, info->fd);
      if (held) {
        listener.held = std::move(*held);
      } else {
        // It serves all the same; reconnecting after its death takes longer.
        log_warning("volume {}: {}", keeper->volume, held.error().message());
      }
    }
  } catch (const Json::exception& exception) {
    co_return failure(ErrorKind::protocol,
                      fmt::format("the keeper's list of listeners: {}", exception.what()));
  }
  std::erase_if(keeper->listeners,
                [&there](const auto& entry) { return !there.contains(entry.first); });
  co_return Result<void>();
}

Async<Result<Json>> Keepers::listeners(std::string volume) {
  Json list = Json::array();
  const auto found = keepers_.find(volume);
  if (found != keepers_.end()) {
    const auto keeper = found->second;
    if (keeper->is_open()) CO_TRY(co_await refresh_listeners(keeper));
    for (const auto& [uri, listener] : keeper->listeners) list.push_back(listener.shown);
  }
  co_return list;
}

Async<Result<Json>> Keepers::serve(std::string volume, Json request) {
  Use used = CO_TRY(co_await use(volume));
  const Json answer = CO_TRY(co_await used.call("serve.start", std::move(request), {}));
  const auto keeper = keeper_of(volume);
  const std::size_t listeners_before = keeper->listeners.size();
  CO_TRY(co_await refresh_listeners(keeper));
  const auto uri = answer.find("uri");
  const auto listener = uri != answer.end() && uri->is_string()
                            ? keeper->listeners.find(uri->get<std::string>())
                            : keeper->listeners.end();
  if (listener == keeper->listeners.end()) {
    co_return failure(ErrorKind::protocol, "the keeper says that it serves, but not where");
  }
  if (keeper->listeners.size() != listeners_before) {
    events_.publish("volume_served", {.volume = volume, .job = {}}, listener->first);
  }
  co_return listener->second.shown;
}

Async<Result<Json>> Keepers::unserve(std::string volume, Json address) {
  Use used = CO_TRY(co_await use(volume));
  const auto keeper = keeper_of(volume);
  CO_TRY(co_await refresh_listeners(keeper));
  Json stopped = Json::array();
  std::vector<Json> addresses;
  for (const auto& [uri, listener] : keeper->listeners) {
    if (!address.empty() && address != listener.address) continue;
    addresses.push_back(listener.address);
    stopped.push_back(listener.shown);
  }
  if (addresses.empty()) {
    co_return failure(ErrorKind::not_found,
                      address.empty() ? fmt::format("volume '{}' is not served", volume)
                                      : fmt::format("volume '{}' is not served at {}", volume,
                                                    address.begin()->get<std::string>()));
  }
  for (const Json& each : addresses) CO_TRY(co_await used.call("serve.stop", each, {}));
  CO_TRY(co_await refresh_listeners(keeper));
  for (const Json& listener : stopped) {
    events_.publish("volume_unserved", {.volume = volume, .job = {}},
                    listener["uri"].get<std::string>());
  }
  co_return stopped;
}

}  // namespace berth::control
