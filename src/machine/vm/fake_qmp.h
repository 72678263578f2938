// QEMU's end of a QMP connection, which says what a test has it say. Only tests include it.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "async/stream.h"
#include "machine/control_protocol.h"
#include "machine/vm/peer_lines.h"

namespace berth::machine {

class FakeQmp {
 public:
  explicit FakeQmp(std::unique_ptr<Stream> stream) : stream_(std::move(stream)) {}

  Task<Result<void>> say(std::string text) {
    const Bytes part = as_bytes(text);
    co_return co_await stream_->write_all(std::span(&part, 1));
  }
  Task<Result<void>> greet() {
    co_return co_await say(R"({"QMP": {"version": {}, "capabilities": []}})"
                           "\r\n");
  }
  /// The next command; `disconnected` when the client has gone.
  Task<Result<Json>> next() {
    while (true) {
      if (const auto line = CO_TRY(lines_.next())) co_return parse_json(*line);
      std::vector<std::byte> buffer(4096);
      const std::size_t got = CO_TRY(co_await stream_->read_some(buffer));
      if (got == 0) co_return failure(ErrorKind::disconnected, "the client has gone");
      lines_.append(Bytes(buffer).first(got));
    }
  }
  Task<Result<void>> answer(Json id, std::string result) {
    co_return co_await say(fmt::format("{{\"return\": {}, \"id\": {}}}\r\n", result, id.dump()));
  }
  Task<Result<void>> accept_capabilities() {
    CO_TRY(co_await greet());
    const Json command = CO_TRY(co_await next());
    CHECK(command["execute"] == "qmp_capabilities");
    co_return co_await answer(command["id"], "{}");
  }
  Stream& stream() { return *stream_; }

 private:
  std::unique_ptr<Stream> stream_;
  LineBuffer lines_{1 << 20};
};

}  // namespace berth::machine
