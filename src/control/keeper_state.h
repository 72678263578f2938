// What Keepers knows of one keeper. Internal to keepers.cc and keeper_serving.cc.
#pragma once

#include <map>
#include <memory>
#include <string>

#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "control/keeper_process.h"
#include "control/keepers.h"

namespace berth::control {

struct Keepers::Keeper {
  Keeper(const Executor& executor, std::string volume)
      : volume(std::move(volume)), mutex(executor), process_ended(executor) {}

  bool is_open() const { return connection && connection->is_open() && alive; }
  bool is_served() const { return !listeners.empty(); }

  struct Listener {
    nlohmann::json shown;    // as in the API
    nlohmann::json address;  // as serve.stop takes it
    Fd held;                 // our duplicate of the listening socket
  };

  std::string volume;
  AsyncMutex mutex;  // starting and ending it
  std::shared_ptr<KeeperConnection> connection;
  KeeperProcess process;
  std::uint64_t generation = 0;  // of the process
  bool alive = false;            // the process
  bool heard = false;  // what the process had reported before we were connected is published
  bool opening = false;
  bool ending = false;  // we asked it to
  Wakeup process_ended;
  std::string last_error;                     // of the last attempt to open it
  std::map<std::string, Listener> listeners;  // by URI
  int uses = 0;
  std::chrono::steady_clock::time_point last_used = std::chrono::steady_clock::now();
  Use backing;  // the keeper of the volume that this one stands on
};

}  // namespace berth::control
