#include "base/log.h"

#include <array>
#include <cstdlib>
#include <memory>

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

namespace berth {
namespace {

constexpr std::array<std::pair<std::string_view, LogLevel>, 6> level_names{{
    {"trace", LogLevel::trace},
    {"debug", LogLevel::debug},
    {"info", LogLevel::info},
    {"warning", LogLevel::warning},
    {"error", LogLevel::error},
    {"off", LogLevel::off},
}};

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::trace: return spdlog::level::trace;
    case LogLevel::debug: return spdlog::level::debug;
    case LogLevel::info: return spdlog::level::info;
    case LogLevel::warning: return spdlog::level::warn;
    case LogLevel::error: return spdlog::level::err;
    case LogLevel::off: return spdlog::level::off;
  }
  return spdlog::level::info;
}

spdlog::logger& logger() {
  // Never destroyed: the last words of a process may come from a destructor of a static.
  static spdlog::logger& instance = *[] {
    auto* made = new spdlog::logger("berth", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %l %v", spdlog::pattern_time_type::utc);
    const char* level = std::getenv("BERTH_LOG");
    made->set_level(to_spdlog(log_level_from_string(level == nullptr ? "" : level)));
    return made;
  }();
  return instance;
}

}  // namespace

LogLevel log_level_from_string(std::string_view name) {
  for (const auto& [known, level] : level_names) {
    if (known == name) return level;
  }
  return LogLevel::info;
}

bool log_enabled(LogLevel level) {
  return level != LogLevel::off && logger().should_log(to_spdlog(level));
}

void set_log_level(LogLevel level) { logger().set_level(to_spdlog(level)); }

void log_write(LogLevel level, std::string_view message) {
  logger().log(to_spdlog(level), message);
}

}  // namespace berth
