// What says that a container is ready: "tcp:80", "http:80/health", "log:ready to accept",
// "exec:pg_isready". Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace berth::container {

struct ReadyProbe {
  enum class Kind : std::uint8_t {
    none,  // it is ready when its command runs
    tcp,   // a port of its own takes connections
    http,  // and answers a GET with a status below 400
    log,   // it has written this
    exec   // this shell command ends with 0
  };
  Kind kind = Kind::none;
  std::uint16_t port = 0;
  std::string path;  // "/…"
  std::string text;  // of the log, or the command
  friend bool operator==(const ReadyProbe&, const ReadyProbe&) = default;
};

/// "" is none. invalid_argument.
Result<ReadyProbe> parse_ready_probe(std::string_view text);

}  // namespace berth::container
