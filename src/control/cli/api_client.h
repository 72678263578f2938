// A small HTTP client of the daemon's UNIX socket, a connection per call. Blocking; for the command
// line.
//
// Errors of the daemon keep their kind. `disconnected` where no daemon answers, with how to start
// one.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "base/fd.h"
#include "base/result.h"
#include "control/actions.h"

namespace berth::control::cli {

class ApiClient {
 public:
  /// `start_hint` is what a person types to start the daemon.
  ApiClient(std::string socket_path, std::string start_hint);

  /// The answer's body. `timed_out` after ten minutes without a byte.
  Result<nlohmann::json> call(const Action& action, const nlohmann::json& parameters) const;

  /// Calls `take` with each line until it returns false or the stream ends. Where `interrupt_fd`
  /// (or -1) becomes readable meanwhile, the answer is `cancelled`; it is not read.
  Result<void> stream(const Action& action, const nlohmann::json& parameters,
                      const std::function<bool(const nlohmann::json& line)>& take,
                      int interrupt_fd) const;

  /// The connection that the daemon joins with what the action is about: nothing has been said on
  /// it yet.
  Result<Fd> upgrade(const Action& action, const nlohmann::json& parameters) const;

 private:
  /// A connection on which that has been asked for.
  Result<Fd> ask(const Action& action, const nlohmann::json& parameters) const;

  std::string socket_path_;
  std::string start_hint_;
};

}  // namespace berth::control::cli
