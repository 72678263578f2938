#include "testing/sim_network.h"

#include <utility>

#include <fmt/format.h>

#include "testing/sim_loop.h"

namespace berth {
namespace {

using std::chrono::microseconds;

}  // namespace

/// What a listener and those who connect to it share.
class SimNetwork::ListenerState {
 public:
  explicit ListenerState(SimLoop& on) : loop(on) {}

  void wake() {
    if (waiter) loop.post(std::exchange(waiter, {}));
  }

  SimLoop& loop;
  std::vector<std::unique_ptr<Stream>> connected;
  std::coroutine_handle<> waiter;
  bool closed = false;
};

class SimListener final : public Listener {
 public:
  SimListener(SimNetwork& network, std::string address,
              std::shared_ptr<SimNetwork::ListenerState> state)
      : network_(network), address_(std::move(address)), state_(std::move(state)) {}
  SimListener(const SimListener&) = delete;
  SimListener& operator=(const SimListener&) = delete;
  ~SimListener() override { close(); }

  Task<Result<std::unique_ptr<Stream>>> accept() override {
    while (!state_->closed && state_->connected.empty()) co_await Wait(*state_);
    if (state_->closed) co_return failure(ErrorKind::cancelled, "the listener was closed");
    SimRandom& random = state_->loop.scheduler().random;
    auto& connected = state_->connected;
    std::swap(random.pick(connected), connected.back());
    std::unique_ptr<Stream> stream = std::move(connected.back());
    connected.pop_back();
    co_return stream;
  }

  void close() override {
    if (std::exchange(state_->closed, true)) return;
    network_.listeners_.erase(address_);
    state_->connected.clear();
    state_->wake();
  }

 private:
  /// Leaves its place when its coroutine goes.
  class Wait {
   public:
    explicit Wait(SimNetwork::ListenerState& state) : state_(state) {}
    Wait(const Wait&) = delete;
    Wait& operator=(const Wait&) = delete;
    ~Wait() { state_.waiter = {}; }
    static bool await_ready() noexcept { return false; }
    void await_suspend(std::coroutine_handle<> waiter) {
      CHECK(!state_.waiter);  // one accept at a time
      state_.waiter = waiter;
    }
    static void await_resume() noexcept {}

   private:
    SimNetwork::ListenerState& state_;
  };

  SimNetwork& network_;
  std::string address_;
  std::shared_ptr<SimNetwork::ListenerState> state_;
};

SimNetwork::~SimNetwork() { CHECK(listeners_.empty()); }

Result<std::unique_ptr<Listener>> SimNetwork::listen(SimLoop& loop, const std::string& address) {
  auto& state = listeners_[address];
  if (state)
    return failure(ErrorKind::in_use, fmt::format("somebody listens at '{}' already", address));
  state = std::make_shared<ListenerState>(loop);
  return std::make_unique<SimListener>(*this, address, state);
}

Task<Result<std::unique_ptr<Stream>>> SimNetwork::connect(SimLoop& loop, std::string address) {
  co_await loop.sleep(microseconds(loop.scheduler().random.below(2000)));
  const auto found = listeners_.find(address);
  if (down_ || found == listeners_.end()) {
    co_return failure(ErrorKind::disconnected,
                      fmt::format("cannot connect to '{}': refused", address));
  }
  ListenerState& listener = *found->second;
  const auto link = SimLink::make(loop, listener.loop, options_);
  links_.push_back(link);
  listener.connected.push_back(link->take_second());
  listener.wake();
  co_return link->take_first();
}

std::vector<std::shared_ptr<SimLink>> SimNetwork::live_links() {
  std::vector<std::shared_ptr<SimLink>> live;
  for (const auto& link : links_) {
    if (auto alive = link.lock()) live.push_back(std::move(alive));
  }
  std::erase_if(links_, [](const auto& link) { return link.expired(); });
  return live;
}

void SimNetwork::cut() {
  for (const auto& link : live_links()) link->cut();
}

void SimNetwork::stall(Duration duration) {
  for (const auto& link : live_links()) link->stall(duration);
}

}  // namespace berth
