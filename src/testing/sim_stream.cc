#include "testing/sim_stream.h"

#include <algorithm>
#include <deque>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "testing/sim_loop.h"

namespace berth {
namespace {

using std::chrono::microseconds;

/// A place for one waiter, which leaves it when its coroutine goes.
class Waiter {
 public:
  auto wait() {
    struct Wait {
      Waiter& place;
      explicit Wait(Waiter& at) : place(at) {}
      Wait(const Wait&) = delete;
      Wait& operator=(const Wait&) = delete;
      ~Wait() { place.waiting_ = {}; }
      static bool await_ready() noexcept { return false; }
      void await_suspend(std::coroutine_handle<> waiter) {
        CHECK(!place.waiting_);  // one read and one write at a time
        place.waiting_ = waiter;
      }
      static void await_resume() noexcept {}
    };
    return Wait(*this);
  }
  void wake(SimLoop& loop) {
    if (waiting_) loop.post(std::exchange(waiting_, {}));
  }

 private:
  std::coroutine_handle<> waiting_;
};

}  // namespace

/// One way of a link. Positions count bytes since its beginning.
struct SimLink::Direction final : SimEvent {
  Direction(SimLink& of, SimLoop& from, SimLoop& to)
      : link(of), writer_loop(from), reader_loop(to) {}

  struct Piece {
    Instant due;
    std::uint64_t end = 0;
  };

  void fire() override;
  void arm();
  void send(Bytes bytes);
  void add_piece(std::uint64_t end);
  void close();
  void begin_reset();
  void reset();
  std::uint64_t sent() const { return received + buffer.size(); }
  std::size_t readable() const { return static_cast<std::size_t>(arrived - received); }
  bool end_arrived() const { return closed && pieces.empty(); }
  Duration delay();

  SimLink& link;
  Direction* back = nullptr;  // the other way
  SimLoop& writer_loop;
  SimLoop& reader_loop;
  std::deque<std::byte> buffer;  // from `received` on
  std::uint64_t received = 0;    // by the reader
  std::uint64_t arrived = 0;     // the reader may have these
  std::deque<Piece> pieces;      // on their way
  bool closed = false;           // the writer will send no more
  bool refused = false;          // the reader will take no more; the writer learns of it later
  bool resetting = false;        // nothing arrives any more but the news of the reset
  bool was_reset = false;
  Waiter reader;
  Waiter writer;
};

Duration SimLink::Direction::delay() {
  SimRandom& random = reader_loop.scheduler().random;
  const auto usual = static_cast<std::uint64_t>(link.options_.latency.count());
  const Duration takes(usual / 2 + random.below(usual));
  return random.one_in(64) ? takes * 20 : takes;
}

void SimLink::Direction::send(Bytes bytes) {
  SimRandom& random = reader_loop.scheduler().random;
  buffer.insert(buffer.end(), bytes.begin(), bytes.end());
  const bool whole = !link.options_.fragments || random.one_in(2);
  std::uint64_t end = sent() - bytes.size();
  while (end != sent()) {
    end += whole ? sent() - end : random.between(1, sent() - end);
    add_piece(end);
  }
}

void SimLink::Direction::add_piece(std::uint64_t end) {
  const Instant due = reader_loop.now() + delay();
  pieces.push_back({.due = pieces.empty() ? due : std::max(due, pieces.back().due), .end = end});
  arm();
}

void SimLink::Direction::arm() {
  if (pieces.empty() || scheduled() || resetting) return;
  reader_loop.scheduler().schedule(*this, std::max(pieces.front().due, link.stalled_until_));
}

void SimLink::Direction::fire() {
  if (resetting) return reset();
  if (reader_loop.now() >= link.stalled_until_) {
    arrived = pieces.front().end;
    pieces.pop_front();
    reader.wake(reader_loop);
    if (end_arrived()) back->writer.wake(reader_loop);
  }
  arm();
}

/// The end travels like a piece, behind the last byte.
void SimLink::Direction::close() {
  if (std::exchange(closed, true) || resetting) return;
  add_piece(sent());
}

void SimLink::Direction::begin_reset() {
  resetting = true;
  reader_loop.scheduler().schedule(*this, reader_loop.now() + delay());
}

void SimLink::Direction::reset() {
  SimRandom& random = reader_loop.scheduler().random;
  was_reset = true;
  if (!pieces.empty() && random.one_in(2)) arrived = random.pick(pieces).end;
  if (random.one_in(2)) arrived = received;  // what had arrived is thrown away
  pieces.clear();
  reader.wake(reader_loop);
  writer.wake(writer_loop);
}

class SimStream final : public Stream {
 public:
  SimStream(std::shared_ptr<SimLink> link, std::size_t end)
      : link_(std::move(link)),
        incoming_(*link_->to_[end]),
        outgoing_(*link_->to_[1 - end]),
        peer_(fmt::format("sim:{}", 1 - end)) {}
  SimStream(const SimStream&) = delete;
  SimStream& operator=(const SimStream&) = delete;
  ~SimStream() override { shutdown(); }

  Task<Result<std::size_t>> read_some(MutableBytes into) override {
    SimLink::Direction& in = incoming_;
    while (!shut_ && !in.was_reset && in.readable() == 0 && !in.end_arrived()) {
      co_await in.reader.wait();
    }
    if (shut_) co_return disconnected("this end was shut down");
    if (in.readable() == 0) {
      if (in.was_reset) co_return disconnected("the connection was reset");
      co_return 0U;
    }
    SimRandom& random = in.reader_loop.scheduler().random;
    std::size_t length = std::min(into.size(), in.readable());
    if (link_->options_.fragments && length > 1 && random.one_in(4))
      length = random.between(1, length);
    std::copy_n(in.buffer.begin(), length, into.begin());
    in.buffer.erase(in.buffer.begin(), in.buffer.begin() + static_cast<std::ptrdiff_t>(length));
    in.received += length;
    in.writer.wake(in.writer_loop);
    co_return length;
  }

  Task<Result<void>> write_all(std::span<const Bytes> parts) override {
    SimLink::Direction& out = outgoing_;
    for (Bytes part : parts) {
      while (!part.empty()) {
        if (shut_) co_return disconnected("this end was shut down");
        if (out.was_reset) co_return disconnected("the connection was reset");
        if (out.refused && incoming_.end_arrived())
          co_return disconnected("the peer has closed the connection");
        const std::size_t window = link_->options_.window_bytes;
        const std::size_t space = out.buffer.size() < window ? window - out.buffer.size() : 0;
        if (space == 0) {
          co_await out.writer.wait();
          continue;
        }
        const std::size_t length = std::min(space, part.size());
        out.send(part.first(length));
        part = part.subspan(length);
      }
    }
    co_return Result<void>{};
  }

  Task<Result<void>> finish_writing() override {
    if (shut_) co_return disconnected("this end was shut down");
    if (outgoing_.was_reset) co_return disconnected("the connection was reset");
    outgoing_.close();
    co_return Result<void>{};
  }

  void shutdown() override {
    if (std::exchange(shut_, true)) return;
    outgoing_.close();
    incoming_.refused = true;
    // A peer that has read our end before learns at its next write.
    if (outgoing_.end_arrived()) incoming_.writer.wake(incoming_.writer_loop);
    incoming_.reader.wake(incoming_.reader_loop);
    outgoing_.writer.wake(outgoing_.writer_loop);
  }

  const std::string& peer() const override { return peer_; }

 private:
  static std::unexpected<Error> disconnected(const char* why) {
    return failure(ErrorKind::disconnected, why);
  }

  std::shared_ptr<SimLink> link_;
  SimLink::Direction& incoming_;
  SimLink::Direction& outgoing_;
  std::string peer_;
  bool shut_ = false;
};

SimLink::SimLink(SimLoop& first, SimLoop& second, SimLinkOptions options) : options_(options) {
  CHECK(&first.scheduler() == &second.scheduler());
  if (options_.latency == Duration{}) {
    options_.latency = microseconds(first.scheduler().random.one_in(2) ? 20 : 2000);
  }
  to_[0] = std::make_unique<Direction>(*this, second, first);
  to_[1] = std::make_unique<Direction>(*this, first, second);
  to_[0]->back = to_[1].get();
  to_[1]->back = to_[0].get();
}

SimLink::~SimLink() = default;

std::shared_ptr<SimLink> SimLink::make(SimLoop& first, SimLoop& second, SimLinkOptions options) {
  return std::shared_ptr<SimLink>(new SimLink(first, second, options));
}

std::unique_ptr<Stream> SimLink::take_first() { return take(0); }
std::unique_ptr<Stream> SimLink::take_second() { return take(1); }

std::unique_ptr<Stream> SimLink::take(std::size_t end) {
  return std::make_unique<SimStream>(shared_from_this(), end);
}

void SimLink::cut() {
  if (std::exchange(cut_, true)) return;
  for (const auto& direction : to_) direction->begin_reset();
}

void SimLink::stall(Duration duration) {
  stalled_until_ = std::max(stalled_until_, to_[0]->reader_loop.now() + duration);
}

}  // namespace berth
