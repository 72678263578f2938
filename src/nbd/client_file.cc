#include "nbd/client_file.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <coroutine>
#include <cstring>
#include <list>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "base/aligned_buffer.h"
#include "base/units.h"
#include "nbd/client_connection.h"
#include "nbd/protocol.h"

namespace berth::nbd {
namespace {

constexpr std::size_t operations_max = 64;  // on the connection at one time; more wait in order
constexpr std::uint64_t status_length_max = 1 * GiB;  // asked for at once
constexpr Duration pause_max = std::chrono::seconds(5);
constexpr Duration post_pause = std::chrono::milliseconds(1);

Instant now() { return std::chrono::steady_clock::now(); }

}  // namespace

/// Owns the thread. What the loop's thread and other callers leave here is guarded by mutex_;
/// everything else belongs to the thread.
class ClientFile::Worker {
 public:
  Worker(UringLoop& loop, std::string uri, Options options)
      : loop_(loop),
        uri_(std::move(uri)),
        options_(options),
        wakeup_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~Worker();

  /// Starts the thread; resumes `waiter` when the first attempt to connect has ended: see
  /// outcome().
  void start(std::coroutine_handle<> waiter);
  Result<void> take_outcome() { return std::exchange(outcome_, Result<void>{}); }

  /// Loop thread.
  void submit(FileRequest& request);
  void stop();
  /// Any thread; waits. The extents from `offset` on, at least one, with their offset.
  Result<std::vector<StatusExtent>> status(std::uint64_t offset);

  UringLoop& loop() { return loop_; }
  std::uint64_t size() const { return size_; }
  bool knows_holes() const { return knows_holes_; }
  const std::string& uri() const { return uri_; }

 private:
  struct Query {
    std::uint64_t offset = 0;
    bool done = false;
    int error = 0;
    std::vector<StatusExtent> extents;
  };
  /// A read or a query on its way, piece by piece.
  struct Job {
    FileRequest* read = nullptr;
    Query* query = nullptr;
    std::uint64_t end = 0;  // of the read, within the export
    Instant answer_deadline{};
    ClientOperation operation;
    AlignedBuffer bounce;  // where the server's blocks are larger than what was asked for
    std::uint64_t piece_offset = 0;
    std::uint64_t piece_length = 0;
    bool started = false;
    unsigned connections_lost = 0;  // while it was on its way
  };

  void wake();
  void forget_wakeups();
  void run();
  Result<std::unique_ptr<ClientConnection>> connect();
  bool connect_first();
  void serve_connection();
  void reconnect();
  void pause(Duration duration);
  void take_new_jobs();
  bool stopped();

  Result<void> start_jobs();
  Result<void> start_piece(Job& job);
  Result<void> collect_done();
  bool advance(Job& job);
  void end_job(Job& job, std::int64_t result);
  void end_all(int errno_value);
  void connection_lost();
  void post_ended();
  Instant next_deadline() const;

  UringLoop& loop_;
  const std::string uri_;
  const Options options_;
  const Fd wakeup_;
  std::thread thread_;
  std::coroutine_handle<> opener_;
  Result<void> outcome_;  // of the first attempt; written before the opener is resumed

  std::atomic<std::uint64_t> size_ = 0;
  std::atomic<bool> knows_holes_ = false;

  std::mutex mutex_;
  std::condition_variable query_done_;
  bool stop_ = false;
  FileRequest* new_first_ = nullptr;
  FileRequest* new_last_ = nullptr;
  std::vector<Query*> new_queries_;

  std::unique_ptr<ClientConnection> connection_;
  std::list<Job> jobs_;
  std::vector<std::coroutine_handle<>> ended_;
  bool changed_ = false;  // the export is another one now
};

ClientFile::Worker::~Worker() {
  stop();
  if (thread_.joinable()) thread_.join();
}

void ClientFile::Worker::stop() {
  {
    const std::scoped_lock lock(mutex_);
    stop_ = true;
  }
  wake();
}

void ClientFile::Worker::start(std::coroutine_handle<> waiter) {
  opener_ = waiter;
  thread_ = std::thread([this] { run(); });
}

void ClientFile::Worker::wake() {
  const std::uint64_t one = 1;
  static_cast<void>(
      !::write(wakeup_.get(), &one, sizeof one));  // fails only when it is readable anyway
}

void ClientFile::Worker::forget_wakeups() {
  std::uint64_t count = 0;
  static_cast<void>(!::read(wakeup_.get(), &count, sizeof count));
}

void ClientFile::Worker::submit(FileRequest& request) {
  request.next = nullptr;
  {
    const std::scoped_lock lock(mutex_);
    if (stop_) {  // nobody may be there any more to take it
      request.result = -ECANCELED;
      return loop_.post(request.waiter);
    }
    (new_first_ == nullptr ? new_first_ : new_last_->next) = &request;
    new_last_ = &request;
  }
  wake();
}

Result<std::vector<StatusExtent>> ClientFile::Worker::status(std::uint64_t offset) {
  Query query;
  query.offset = offset;
  std::unique_lock lock(mutex_);
  if (stop_) return failure(ErrorKind::cancelled, fmt::format("'{}' was closed", uri_));
  new_queries_.push_back(&query);
  wake();
  query_done_.wait(lock, [&] { return query.done; });
  if (query.error != 0)
    return errno_failure(query.error, fmt::format("cannot learn where '{}' has holes", uri_));
  return std::move(query.extents);
}

bool ClientFile::Worker::stopped() {
  const std::scoped_lock lock(mutex_);
  return stop_;
}

void ClientFile::Worker::run() {
  if (connect_first()) {
    while (!stopped()) {
      if (connection_ != nullptr) {
        serve_connection();
      } else if (jobs_.empty()) {
        pause(pause_max);  // until somebody wants something
        take_new_jobs();
      } else {
        reconnect();
      }
    }
  }
  connection_.reset();
  take_new_jobs();
  end_all(ECANCELED);
}

Result<std::unique_ptr<ClientConnection>> ClientFile::Worker::connect() {
  const auto interrupted = [](void* context) {
    auto& worker = *static_cast<Worker*>(context);
    worker.forget_wakeups();
    return worker.stopped();
  };
  return ClientConnection::connect(
      uri_, now() + options_.connect_timeout,
      {.wakeup = wakeup_.get(), .interrupted = interrupted, .context = this});
}

bool ClientFile::Worker::connect_first() {
  auto connected = connect();
  if (connected) {
    connection_ = std::move(*connected);
    size_ = connection_->size();
    knows_holes_ = connection_->knows_holes();
  } else {
    outcome_ =
        failure(std::move(connected).error().with_context(fmt::format("cannot open '{}'", uri_)));
  }
  ended_.push_back(opener_);
  post_ended();
  return connection_ != nullptr;
}

/// Until the connection fails, or the file goes.
void ClientFile::Worker::serve_connection() {
  Result<void> outcome;
  while (outcome && !stopped()) {
    take_new_jobs();
    outcome = start_jobs();
    if (outcome) outcome = connection_->wait(wakeup_.get(), next_deadline());
    if (const Result<void> collected = collect_done(); outcome) outcome = collected;
    if (outcome && now() >= next_deadline())
      outcome = failure(ErrorKind::timed_out, "the NBD server does not answer");
    post_ended();
  }
  if (outcome) return;
  spdlog::warn("nbd client: {}: {}", uri_, outcome.error().message());
  connection_lost();
}

void ClientFile::Worker::connection_lost() {
  connection_.reset();
  // Nothing points into the jobs any more; what was not answered is asked again.
  for (auto job = jobs_.begin(); job != jobs_.end();) {
    if (job->started) ++job->connections_lost;
    job->operation = {};
    job->started = false;
    const bool given_up = job->connections_lost >= options_.attempts_max;
    if (given_up) end_job(*job, -ECONNRESET);
    job = given_up ? jobs_.erase(job) : std::next(job);
  }
  post_ended();
}

/// With jobs waiting. Gives them up when it does not succeed.
void ClientFile::Worker::reconnect() {
  Duration wait = options_.pause_first;
  for (unsigned attempt = 1; attempt <= options_.attempts_max && !changed_; ++attempt) {
    auto connected = connect();
    if (stopped()) return;
    if (connected) {
      connection_ = std::move(*connected);
      changed_ = connection_->size() != size_;
      if (!changed_) return;
      connection_.reset();
      spdlog::error("nbd client: {} has another size than before: nothing more is read from it",
                    uri_);
      break;
    }
    spdlog::warn("nbd client: {}: attempt {} of {}: {}", uri_, attempt, options_.attempts_max,
                 connected.error().message());
    if (attempt < options_.attempts_max) pause(wait);
    if (stopped()) return;
    wait = std::min(wait * 2, pause_max);
  }
  take_new_jobs();
  end_all(changed_ ? EIO : ECONNRESET);
}

/// Until it is over, or somebody calls.
void ClientFile::Worker::pause(Duration duration) {
  const Instant deadline = now() + duration;
  pollfd wakeup{.fd = wakeup_.get(), .events = POLLIN, .revents = 0};
  while (!stopped() && now() < deadline) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - now());
    if (::poll(&wakeup, 1, static_cast<int>(left.count())) <= 0) continue;
    if (jobs_.empty()) return;
    // Already in a hurry: new work does not cut the pause short.
    forget_wakeups();
  }
}

void ClientFile::Worker::take_new_jobs() {
  forget_wakeups();
  FileRequest* request = nullptr;
  std::vector<Query*> queries;
  {
    const std::scoped_lock lock(mutex_);
    request = std::exchange(new_first_, nullptr);
    queries.swap(new_queries_);
  }
  const std::uint64_t size = size_;
  while (request != nullptr) {
    FileRequest* next = request->next;
    Job& job = jobs_.emplace_back();
    job.read = request;
    job.read->done = 0;
    job.end = request->offset >= size
                  ? request->offset
                  : request->offset + std::min(request->length, size - request->offset);
    request = next;
  }
  for (Query* query : queries) jobs_.emplace_back().query = query;
}

Result<void> ClientFile::Worker::start_jobs() {
  std::size_t started = 0;
  for (auto job = jobs_.begin(); job != jobs_.end() && started < operations_max;) {
    if (job->read != nullptr &&
        job->read->offset + job->read->done == job->end) {  // nothing to read, or an error
      end_job(*job, static_cast<std::int64_t>(job->read->done));
      job = jobs_.erase(job);
      continue;
    }
    if (!job->started) TRY(start_piece(*job));
    ++started;
    ++job;
  }
  return {};
}

Result<void> ClientFile::Worker::start_piece(Job& job) {
  job.operation = {};
  job.answer_deadline = now() + options_.answer_timeout;
  job.started = true;
  const std::uint64_t block = connection_->block_minimum();
  if (job.query != nullptr) {
    const std::uint64_t offset = round_down(job.query->offset, block);
    return connection_->start_status(offset, std::min(status_length_max, size_ - offset),
                                     job.operation);
  }
  const std::uint64_t offset = job.read->offset + job.read->done;
  const std::uint64_t length =
      std::min<std::uint64_t>(job.end - offset, connection_->payload_max() - block);
  job.piece_offset = round_down(offset, block);
  job.piece_length =
      std::min<std::uint64_t>(round_up(offset + length, block), size_) - job.piece_offset;
  std::byte* into = job.read->data + job.read->done;
  if (job.piece_offset != offset || job.piece_length != length) {
    job.bounce = AlignedBuffer(job.piece_length);
    into = job.bounce.data();
  } else {
    job.bounce = {};
  }
  return connection_->start_read(job.piece_offset, MutableBytes(into, job.piece_length),
                                 job.operation);
}

/// An error when the server has said that it is going. What ended with the connection was not
/// answered.
Result<void> ClientFile::Worker::collect_done() {
  for (auto job = jobs_.begin(); job != jobs_.end();) {
    const int error = job->operation.error;
    if (error == ENOTCONN || error == ESHUTDOWN) {
      return failure(ErrorKind::disconnected, "the NBD server is shutting down");
    }
    const bool ended = job->started && job->operation.done && advance(*job);
    job = ended ? jobs_.erase(job) : std::next(job);
  }
  return {};
}

/// A piece has come. True when the job has ended with it.
bool ClientFile::Worker::advance(Job& job) {
  const int error = job.operation.error;
  job.started = false;
  if (error != 0) {
    end_job(job, -error);
    return true;
  }
  if (job.query != nullptr) {
    std::uint64_t skip =
        job.query->offset - round_down(job.query->offset, connection_->block_minimum());
    for (const StatusExtent& extent : job.operation.extents) {
      const std::uint64_t skipped = std::min(skip, extent.length);
      skip -= skipped;
      if (extent.length != skipped)
        job.query->extents.push_back({extent.length - skipped, extent.flags});
    }
    end_job(job, job.query->extents.empty() ? -EPROTO : 0);
    return true;
  }
  const std::uint64_t offset = job.read->offset + job.read->done;
  const std::uint64_t until = std::min(job.end, job.piece_offset + job.piece_length);
  if (job.bounce) {
    std::memcpy(job.read->data + job.read->done, job.bounce.data() + (offset - job.piece_offset),
                until - offset);
  }
  job.read->done += until - offset;
  if (until != job.end) return false;
  end_job(job, static_cast<std::int64_t>(job.read->done));
  return true;
}

/// Its waiter is resumed by post_ended().
void ClientFile::Worker::end_job(Job& job, std::int64_t result) {
  if (job.read != nullptr) {
    job.read->result = result;
    ended_.push_back(job.read->waiter);
    return;
  }
  const std::scoped_lock lock(mutex_);
  job.query->error = static_cast<int>(-result);
  job.query->done = true;
  query_done_.notify_all();
}

void ClientFile::Worker::end_all(int errno_value) {
  for (Job& job : jobs_) end_job(job, -errno_value);
  jobs_.clear();
  post_ended();
}

void ClientFile::Worker::post_ended() {
  if (ended_.empty()) return;
  const auto post_all = [this](const std::vector<std::coroutine_handle<>>& waiters) {
    return loop_.post_from_thread([&loop = loop_, waiters] {
      for (const auto waiter : waiters) loop.post(waiter);
    });
  };
  while (!post_all(ended_)) std::this_thread::sleep_for(post_pause);  // the loop is far behind
  ended_.clear();
}

Instant ClientFile::Worker::next_deadline() const {
  Instant earliest = now() + options_.answer_timeout;
  for (const Job& job : jobs_) {
    if (job.started) earliest = std::min(earliest, job.answer_deadline);
  }
  return earliest;
}

ClientFile::ClientFile(std::unique_ptr<Worker> worker) : worker_(std::move(worker)) {}
ClientFile::~ClientFile() = default;

Task<Result<std::unique_ptr<ClientFile>>> ClientFile::open(UringLoop& loop, std::string uri,
                                                           Options options) {
  struct Wait {
    Worker& worker;
    static bool await_ready() noexcept { return false; }
    void await_suspend(std::coroutine_handle<> waiter) const { worker.start(waiter); }
    static void await_resume() noexcept {}
  };
  auto worker = std::make_unique<Worker>(loop, std::move(uri), options);
  co_await Wait{*worker};
  CO_TRY(worker->take_outcome());
  co_return std::unique_ptr<ClientFile>(new ClientFile(std::move(worker)));
}

void ClientFile::close() { worker_->stop(); }

void ClientFile::submit(FileRequest& request) {
  if (request.kind == FileRequest::Kind::read) return worker_->submit(request);
  request.result = request.kind == FileRequest::Kind::sync ? 0 : -EROFS;
  worker_->loop().post(request.waiter);
}

Result<std::uint64_t> ClientFile::size() { return worker_->size(); }

Result<void> ClientFile::truncate(std::uint64_t /*size*/) {
  return failure(ErrorKind::read_only, fmt::format("'{}' is only read here", name()));
}

Result<FileIdentity> ClientFile::identity() {
  return FileIdentity{.size = worker_->size(), .device_id = name()};
}

const std::string& ClientFile::name() const { return worker_->uri(); }

Result<std::uint64_t> ClientFile::next_data(std::uint64_t offset) { return seek(offset, false); }
Result<std::uint64_t> ClientFile::next_hole(std::uint64_t offset) { return seek(offset, true); }

/// The first offset at or after `offset` that is a hole, or is none.
Result<std::uint64_t> ClientFile::seek(std::uint64_t offset, bool hole) {
  const std::uint64_t end = worker_->size();
  if (!worker_->knows_holes()) return hole ? end : std::min(offset, end);
  while (offset < end) {
    for (const StatusExtent& extent : TRY(worker_->status(offset))) {
      if (((extent.flags & status_zero) != 0) == hole) return std::min(offset, end);
      offset += extent.length;
    }
  }
  return end;
}

}  // namespace berth::nbd
