#include "agent/program/server.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <utility>

#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/program/guest_files.h"
#include "agent/program/identity.h"
#include "agent/program/small_files.h"

namespace berth::agent {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t default_grace_ms = 10'000;
constexpr std::uint64_t grace_max_ms = 600'000;
constexpr std::uint64_t default_freeze_ms = 10'000;
constexpr std::uint64_t freeze_max_ms = 600'000;
constexpr milliseconds last_words_max{500};  // for what has been said and has not gone
constexpr std::size_t read_size = std::size_t{32} << 10;

/// Whether there is a process that is neither the kernel's nor ours. Those who have ended are
/// reaped elsewhere.
bool has_children() { return ::waitid(P_ALL, 0, nullptr, WEXITED | WNOWAIT | WNOHANG) == 0; }

}  // namespace

Server::Server(EventLoop& loop, Fd port, std::string boot_error)
    : loop_(loop), port_(std::move(port)), boot_error_(std::move(boot_error)) {
  watch_children();
  set_welcome();
  watch_port();
}

Server::Server(EventLoop& loop, Listener listener)
    : loop_(loop), listener_(std::move(listener.socket)) {
  watch_children();
  set_welcome();
  loop_.watch(listener_.get(), EPOLLIN | EPOLLET, [this](std::uint32_t) { may_accept_ = true; });
}

/// The next one waits until this one has gone.
void Server::accept_host() {
  if (port_ || !listener_ || !may_accept_) return;
  port_ = Fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  may_accept_ = port_ || errno == EINTR || errno == ECONNABORTED;
  if (!port_) return;
  may_read_ = true;
  may_write_ = true;
  watch_port();
}

/// A connection that is over never comes back; a port does.
void Server::drop_host() {
  is_host_there_ = false;
  if (!listener_) return;
  loop_.forget(port_.get());
  port_.reset();
}

void Server::watch_port() {
  // Edge-triggered: a port without a host says so all the time.
  loop_.watch(port_.get(), EPOLLIN | EPOLLOUT | EPOLLET, [this](std::uint32_t) {
    may_read_ = true;
    may_write_ = true;
  });
}

void Server::watch_children() {
  sigset_t all;
  ::sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, nullptr);
  sigset_t ended;
  ::sigemptyset(&ended);
  ::sigaddset(&ended, SIGCHLD);
  children_ = Fd(::signalfd(-1, &ended, SFD_NONBLOCK | SFD_CLOEXEC));
  loop_.watch(children_.get(), EPOLLIN, [this](std::uint32_t) {
    std::array<signalfd_siginfo, 16> taken;
    while (::read(children_.get(), taken.data(), sizeof taken) > 0) {
    }
    processes_.reap([this](pid_t pid, int status) {
      return clone_.reaped(pid, status) || transfers_.reaped(pid, status);
    });
  });
}

void Server::set_welcome() {
  FieldWriter welcome;
  welcome.text(Tag::kernel, read_line("/proc/sys/kernel/osrelease"));
  welcome.text(Tag::boot_id, read_line("/proc/sys/kernel/random/boot_id"));
  if (!boot_error_.empty()) welcome.text(Tag::boot_error, boot_error_);
  session_.set_welcome({welcome.bytes().begin(), welcome.bytes().end()});
}

void Server::run() {
  while (!is_over_) {
    pump_port();
    look_at_the_time();
    if (is_over_) break;
    loop_.wait(time_left());
  }
  // The last answers; nobody may be there to take them.
  const auto deadline = Clock::now() + last_words_max;
  while (is_host_there_ && Clock::now() < deadline) {
    session_.fill_output();
    if (session_.output().empty()) break;
    write_port();
    if (!may_write_ && port_) loop_.wait(milliseconds(10));
  }
  mounts_.leave();
}

void Server::pump_port() {
  bool goes_on = true;
  while (goes_on) {
    goes_on = false;
    accept_host();
    if (port_ && may_read_ && session_.backlog() < control_backlog_max) {
      read_port();
      goes_on = may_read_;
    }
    take_messages();
    session_.fill_output();
    connections_.drop_ended();
    transfers_.drop_ended();
    if (port_ && may_write_ && !session_.output().empty()) {
      write_port();
      goes_on = goes_on || may_write_;
    }
    // Somebody may be waiting whom nobody will tell of again.
    if (!port_ && listener_ && may_accept_) goes_on = true;
    // Processes have their turn, also while a host sends without end.
    if (goes_on) loop_.wait(milliseconds(0));
  }
}

void Server::read_port() {
  std::array<std::byte, read_size> buffer;
  const ssize_t count = ::read(port_.get(), buffer.data(), buffer.size());
  // Of the kernel's two ways to tell of a new host, its bytes are often the faster one: so nothing
  // is forgotten when a host goes, but when the next one greets.
  is_host_there_ = count != 0;
  if (count > 0) {
    session_.receive(Bytes(buffer).first(static_cast<std::size_t>(count)));
  } else if (count == 0 || errno != EINTR) {
    may_read_ = false;
    if (count == 0 || errno != EAGAIN) drop_host();
  }
}

void Server::write_port() {
  const Bytes bytes = session_.output();
  const ssize_t count = ::write(port_.get(), bytes.data(), bytes.size());
  if (count > 0) {
    session_.mark_written(static_cast<std::size_t>(count));
  } else if (count == 0 || errno != EINTR) {
    may_write_ = false;
    if (count < 0 && (errno == EPIPE || errno == ECONNRESET)) drop_host();
  }
}

void Server::take_messages() {
  while (session_.backlog() < control_backlog_max) {
    const auto message = session_.next();
    if (!message) return;
    if (message->kind == Message::Kind::request) take_request(*message);
    if (message->kind != Message::Kind::stream) continue;
    processes_.stream_changed(message->channel);
    connections_.stream_changed(message->channel);
    transfers_.stream_changed(message->channel);
  }
}

void Server::take_request(const Message& message) {
  FieldWriter answer;
  bool is_answered = true;
  auto served = [&]() -> Result<void> {
    const Fields fields = TRY(Fields::decode(message.fields));
    TRY(fields.check_tags());
    return serve(message, fields, answer, is_answered);
  }();
  if (!served) {
    FieldWriter refusal;
    write_error(refusal, served.error());
    session_.answer(message.channel, refusal);
  } else if (is_answered) {
    session_.answer(message.channel, answer);
  }
}

Result<void> Server::serve(const Message& message, const Fields& fields, FieldWriter& answer,
                           bool& is_answered) {
  const auto operation = static_cast<Operation>(message.head);
  if (operation == Operation::power_off) return begin_power_off(fields);
  if (!boot_error_.empty()) return failure(ErrorKind::precondition, boot_error_);
  switch (operation) {
    case Operation::start:
      if (ends_at_) return failure(ErrorKind::precondition, "the guest is about to power off");
      if (!workload_.is_running()) return failure(ErrorKind::precondition, "it is frozen");
      is_answered = false;
      return processes_.start(message.channel, fields);
    case Operation::signal: return processes_.send_signal(fields);
    case Operation::resize: return processes_.resize(fields);
    case Operation::list:
      answer.number(Tag::frozen, workload_.is_frozen() ? 1 : 0);
      processes_.list(answer);
      connections_.list(answer);
      transfers_.list(answer);
      return {};
    case Operation::forget: return processes_.forget(fields);
    case Operation::write_file: return write_file_piece(fields);
    case Operation::read_file: return read_file_piece(fields, answer);
    case Operation::set_clock: return set_clock(fields);
    case Operation::set_identity: return set_identity(fields);
    case Operation::configure: return configure(fields);
    case Operation::sync: ::sync(); return {};
    case Operation::connect:
      is_answered = false;
      return connections_.connect(message.channel, fields);
    case Operation::close_stream: return close_stream(fields);
    case Operation::mount: return mounts_.mount(fields);
    case Operation::freeze:
    case Operation::thaw:
    case Operation::become_clone: return serve_workload(message, fields, is_answered);
    case Operation::rehearse: answer.number(Tag::port, TRY(clone_.rehearse(fields))); return {};
    case Operation::archive_read:
      is_answered = false;
      return transfers_.start(message.channel, fields, TransferTable::Direction::from_guest);
    case Operation::archive_write:
      is_answered = false;
      return transfers_.start(message.channel, fields, TransferTable::Direction::to_guest);
    default: break;
  }
  return failure(ErrorKind::unsupported,
                 "this agent does not know operation " + std::to_string(message.head));
}

Result<void> Server::serve_workload(const Message& message, const Fields& fields,
                                    bool& is_answered) {
  if (clone_.is_running()) return failure(ErrorKind::in_use, "it becomes a clone");
  const auto operation = static_cast<Operation>(message.head);
  if (operation == Operation::thaw) return workload_.thaw();
  const std::uint64_t limit_ms =
      std::min(TRY(fields.number_or(Tag::timeout_ms, default_freeze_ms)), freeze_max_ms);
  is_answered = false;
  const auto finish = [this, request = message.channel](const Result<void>& result,
                                                        FieldWriter answer) {
    if (!result) write_error(answer, result.error());
    session_.answer(request, answer);
  };
  if (operation == Operation::become_clone) return clone_.begin(message.fields, finish);
  return workload_.freeze(milliseconds(limit_ms),
                          [finish](const Result<void>& result) { finish(result, FieldWriter()); });
}

Result<void> Server::close_stream(const Fields& fields) {
  const std::uint64_t number = TRY(fields.number(Tag::stream));
  const auto stream = static_cast<std::uint32_t>(number);
  const bool is_there = connections_.contains(stream) || transfers_.contains(stream);
  if (stream != number || !is_there) {
    return failure(ErrorKind::not_found, "there is no such stream " + std::to_string(number));
  }
  connections_.close(stream);
  transfers_.close(stream);
  return {};
}

Result<void> Server::begin_power_off(const Fields& fields) {
  const std::uint64_t grace_ms = TRY(fields.number_or(Tag::grace_ms, default_grace_ms));
  if (!ends_at_) ::kill(-1, SIGTERM);
  // Who is frozen can do nothing with the time, and must not run: it may not be a clone yet.
  const std::uint64_t given_ms = workload_.is_running() ? std::min(grace_ms, grace_max_ms) : 0;
  ends_at_ = Clock::now() + milliseconds(given_ms);
  return {};
}

void Server::look_at_the_time() {
  const auto now = Clock::now();
  const auto linger_ms = processes_.linger_ms();
  if (!linger_ms || is_host_there_) {
    alone_since_.reset();
  } else {
    if (!alone_since_) alone_since_ = now;
    if (!ends_at_ && now >= *alone_since_ + milliseconds(*linger_ms)) {
      ::kill(-1, SIGTERM);
      ends_at_ = now + milliseconds(default_grace_ms);
    }
  }
  if (!ends_at_) return;
  if (now >= *ends_at_ && !is_killed_) {
    ::kill(-1, SIGKILL);
    is_killed_ = true;
    ends_at_ = now + last_words_max;
  }
  is_over_ = !has_children() || (is_killed_ && now >= *ends_at_);
}

std::optional<milliseconds> Server::time_left() const {
  std::optional<Clock::time_point> until = ends_at_;
  if (alone_since_ && !until) until = *alone_since_ + milliseconds(*processes_.linger_ms());
  if (!until) return std::nullopt;
  const auto left = std::chrono::ceil<milliseconds>(*until - Clock::now());
  return std::max(left, milliseconds(0));
}

}  // namespace berth::agent
