// A client of a control socket on a Loop, a request at a time or several. Only tests include it.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "async/stream.h"
#include "machine/control_protocol.h"

namespace berth::machine {

class ControlClient {
 public:
  explicit ControlClient(std::unique_ptr<Stream> stream) : stream_(std::move(stream)) {}

  Task<Result<void>> send_line(std::string line) {
    const Bytes part = as_bytes(line);
    co_return co_await stream_->write_all(std::span(&part, 1));
  }

  /// Sends a request and returns its number.
  Task<Result<std::uint64_t>> start(std::string method, Json params) {
    const std::uint64_t id = next_id_++;
    CO_TRY(co_await send_line(format_request(id, method, std::move(params))));
    co_return id;
  }

  /// The next thing that the keeper says; `disconnected` at the end.
  Task<Result<ControlReply>> next() {
    std::size_t end = pending_.find('\n');
    while (end == std::string::npos) {
      std::vector<std::byte> buffer(65536);
      const std::size_t got = CO_TRY(co_await stream_->read_some(buffer));
      if (got == 0)
        co_return failure(ErrorKind::disconnected, "the keeper has closed the connection");
      pending_ += as_text(Bytes(buffer).first(got));
      end = pending_.find('\n');
    }
    const std::string line = pending_.substr(0, end);
    pending_.erase(0, end + 1);
    co_return parse_reply(line);
  }

  /// The end of one request; what comes before it is kept in `others`.
  Task<Result<Json>> wait(std::uint64_t id) {
    while (true) {
      ControlReply reply = CO_TRY(co_await next());
      const bool ends =
          reply.kind == ControlReply::Kind::result || reply.kind == ControlReply::Kind::error;
      if (!ends || reply.id != id) {
        others.push_back(std::move(reply));
        continue;
      }
      if (reply.error) co_return failure(std::move(*reply.error));
      co_return std::move(reply.result);
    }
  }

  Task<Result<Json>> call(std::string method, Json params = Json::object()) {
    const std::uint64_t id = CO_TRY(co_await start(std::move(method), std::move(params)));
    co_return co_await wait(id);
  }

  Stream& stream() { return *stream_; }
  std::vector<ControlReply> others;

 private:
  std::unique_ptr<Stream> stream_;
  std::string pending_;
  std::uint64_t next_id_ = 1;
};

}  // namespace berth::machine
