// A whole connection of the NBD server, on a loop that does nothing but run: any bytes from a
// client, in pieces, over an export in memory. It must come to its end, with nothing left behind.
//
// Input: a byte with the size of the pieces (times 16), a byte with the number of pieces after
// which the client takes no more answers (0: it takes all), then what the client sends.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <utility>

#include <spdlog/spdlog.h>

#include "nbd/memory_export.h"
#include "nbd/server.h"

namespace berth::nbd {
namespace {

class InstantLoop final : public Loop {
 public:
  void post(std::coroutine_handle<> waiter) override { ready_.push_back(waiter); }
  void add_timer(TimerRequest& timer) override { timer.armed = true; }  // time stands still
  void remove_timer(TimerRequest& timer) override { timer.armed = false; }
  void submit_offload(OffloadRequest& request) override {
    request.run(request);
    post(request.waiter);
  }
  Instant now() const override { return {}; }
  std::chrono::system_clock::time_point wall_time() const override { return {}; }

  void run() {
    while (!ready_.empty()) {
      const auto waiter = ready_.front();
      ready_.pop_front();
      waiter.resume();
    }
  }

 private:
  std::deque<std::coroutine_handle<>> ready_;
};

class FuzzStream final : public Stream {
 public:
  FuzzStream(Loop& loop, Bytes input, std::size_t piece, std::size_t answers_taken)
      : loop_(loop), input_(input), piece_(piece), answers_taken_(answers_taken) {}

  Task<Result<std::size_t>> read_some(MutableBytes into) override {
    CHECK(!into.empty());
    co_await loop_.yield();
    if (shut_) co_return failure(ErrorKind::disconnected, "shut down");
    const Bytes piece = input_.first(std::min({piece_, into.size(), input_.size()}));
    input_ = input_.subspan(piece.size());
    std::ranges::copy(piece, into.begin());
    co_return piece.size();
  }
  Task<Result<void>> write_all(std::span<const Bytes> parts) override {
    std::size_t length = 0;
    for (const Bytes part : parts) {
      for (const std::byte byte : part)
        checksum_ += static_cast<unsigned>(byte);  // the address sanitizer looks on
      length += part.size();
    }
    CHECK(length != 0);
    if (checksum_ % 2 == 0) co_await loop_.yield();
    if (shut_ || (answers_taken_ != 0 && ++answers_ > answers_taken_)) {
      co_return failure(ErrorKind::disconnected, "the client takes no more");
    }
    co_return Result<void>{};
  }
  Task<Result<void>> finish_writing() override { co_return Result<void>{}; }
  void shutdown() override { shut_ = true; }
  const std::string& peer() const override { return peer_; }

 private:
  Loop& loop_;
  Bytes input_;
  const std::size_t piece_;
  const std::size_t answers_taken_;
  std::size_t answers_ = 0;
  unsigned checksum_ = 0;
  bool shut_ = false;
  std::string peer_ = "fuzzer";
};

void run(Bytes input, std::size_t piece, std::size_t answers_taken) {
  InstantLoop loop;
  FixedExports exports;
  exports.add(std::make_shared<MemoryExport>(
      MemoryExport::Options{.info = {.name = "disk", .size = 3 * MiB + 1},
                            .changed_context = "berth:changed:a",
                            .allocated_bytes_max = MiB}));
  exports.add(std::make_shared<MemoryExport>(MemoryExport::Options{
      .info = {.name = "read-only", .size = MiB, .read_only = true, .block_minimum = 4096}}));
  Server server(
      loop, exports,
      {.connection = {.limits = {.requests_in_flight_max = 8, .bytes_in_flight_max = 2 * MiB}}});
  server.serve(std::make_unique<FuzzStream>(loop, input, piece, answers_taken));
  loop.run();
  CHECK(server.connection_count() == 0);
}

}  // namespace
}  // namespace berth::nbd

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  spdlog::set_level(spdlog::level::off);
  if (size < 2) return 0;
  const berth::Bytes input(reinterpret_cast<const std::byte*>(data), size);
  berth::nbd::run(input.subspan(2), (std::size_t{data[0]} + 1) * 16, data[1]);
  return 0;
}
