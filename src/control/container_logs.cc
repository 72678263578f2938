// container.logs: what a container has written, and what it writes, entry by entry.

#include <deque>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/log.h"
#include "container/log_lines.h"
#include "control/operations.h"
#include "control/spawn.h"
#include "machine/control_protocol.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;
using container::LogEntry;
using container::LogLines;

constexpr Milliseconds log_poll{100};

Json encode(const LogEntry& entry) {
  return {{"at", entry.at},
          {"stream", entry.stream == container::LogStream::errors ? "stderr" : "stdout"},
          {"text", entry.text},
          {"partial", entry.partial}};
}

Result<std::vector<std::string>> read_piece(LogLines& lines) {
  std::vector<std::string> read;
  // A piece may hold nothing but what is passed over.
  while (read.empty()) {
    if (!TRY(lines.read([&read](const LogEntry& entry, bool) {
          read.push_back(machine::format_json(encode(entry)));
        })))
      break;
  }
  return read;
}

class LogSource final : public LineSource {
 public:
  LogSource(Services& services, std::string name, std::shared_ptr<LogLines> lines, bool follows)
      : services_(services),
        name_(std::move(name)),
        lines_(std::move(lines)),
        follows_(follows),
        changed_(services.executor) {}

  Async<std::optional<std::string>> next() override {
    while (!closed_ && waiting_.empty()) {
      // Before the log is read: everything is in it once the container has ended.
      const bool goes_on = follows_ && runs();
      auto read =
          co_await on_worker(services_.workers, [lines = lines_] { return read_piece(*lines); });
      if (!read) {
        log_warning("the log of the container '{}': {}", name_, read.error().message());
        co_return std::nullopt;
      }
      waiting_.assign(std::move_iterator(read->begin()), std::move_iterator(read->end()));
      if (!waiting_.empty()) break;
      if (!goes_on) co_return std::nullopt;
      if (!closed_) (void)co_await changed_.wait_for(log_poll);
    }
    if (closed_) co_return std::nullopt;
    std::string line = std::move(waiting_.front());
    waiting_.pop_front();
    co_return line;
  }

  void close() override {
    closed_ = true;
    changed_.notify();
  }

 private:
  bool runs() const {
    return services_.containers.is_on(name_) || services_.containers.is_hibernated(name_);
  }

  Services& services_;
  const std::string name_;
  const std::shared_ptr<LogLines> lines_;
  const bool follows_;
  std::deque<std::string> waiting_;
  Wakeup changed_;
  bool closed_ = false;
};

}  // namespace

Async<Result<Stream>> container_logs(Services& services, Json params) {
  const auto record =
      CO_TRY(co_await services.containers.find(params["container"].get<std::string>()));
  const std::string& name = record.specification.name;
  const auto lines =
      std::make_shared<LogLines>(container::ContainerStore(services.state_dir).log(name));
  if (params.contains("tail")) {
    const auto count = params["tail"].get<std::size_t>();
    CO_TRY(
        co_await on_worker(services.workers, [lines, count] { return lines->keep_last(count); }));
  }
  co_return std::make_unique<LogSource>(services, name, lines, params.value("follow", false));
}

}  // namespace berth::control
