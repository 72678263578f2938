#include "agent/program/process_table.h"

#include <array>
#include <cerrno>
#include <csignal>

#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "agent/program/connection_table.h"
#include "agent/program/small_files.h"

namespace berth::agent {
namespace {

constexpr std::uint64_t default_linger_ms = 30'000;
constexpr std::array streams{stream_input, stream_output, stream_errors};

std::string passwd_file(const char* path) {
  auto text = read_small_file(path);
  // An image without one has no names; that is said when a name is asked for.
  return text ? std::move(*text) : std::string();
}

Result<ChildSpec> read_spec(const Fields& fields) {
  ChildSpec spec;
  const std::uint64_t flags = TRY(fields.number_or(Tag::flags, 0));
  spec.arguments = TRY(fields.texts(Tag::argument));
  if (spec.arguments.empty()) {
    return failure(ErrorKind::invalid_argument, "there is no program to run");
  }
  spec.environment = TRY(fields.texts(Tag::environment));
  spec.working_directory = TRY(fields.text_or(Tag::working_directory, "/"));
  spec.has_terminal = (flags & start_terminal) != 0;
  spec.has_input = (flags & start_with_input) != 0;
  spec.rows = static_cast<std::uint16_t>(TRY(fields.number_or(Tag::rows, 24)));
  spec.columns = static_cast<std::uint16_t>(TRY(fields.number_or(Tag::columns, 80)));
  const std::string who = TRY(fields.text_or(Tag::user, ""));
  spec.user = TRY(resolve_user(who, passwd_file("/etc/passwd"), passwd_file("/etc/group")));
  return spec;
}

void write_end(FieldWriter& writer, int status) {
  if (WIFSIGNALED(status)) {
    writer.number(Tag::exit_signal, static_cast<std::uint64_t>(WTERMSIG(status)));
  } else {
    writer.number(Tag::exit_code, static_cast<std::uint64_t>(WEXITSTATUS(status)));
  }
}

}  // namespace

Result<ProcessTable::Process*> ProcessTable::find(const Fields& fields) {
  const std::uint64_t number = TRY(fields.number(Tag::process));
  const auto found = number <= process_number_max
                         ? processes_.find(static_cast<std::uint32_t>(number))
                         : processes_.end();
  if (found == processes_.end()) {
    return failure(ErrorKind::not_found, "there is no process " + std::to_string(number));
  }
  return &found->second;
}

Result<void> ProcessTable::start(std::uint32_t request, const Fields& fields) {
  const std::uint64_t wanted = TRY(fields.number(Tag::process));
  if (wanted == 0 || wanted > process_number_max) {
    return failure(ErrorKind::invalid_argument,
                   "a process's number is 1 to " + std::to_string(process_number_max));
  }
  const auto number = static_cast<std::uint32_t>(wanted);
  if (processes_.contains(number)) {
    return failure(ErrorKind::already_exists, "there is a process " + std::to_string(number));
  }
  if (processes_.size() >= processes_max) {
    return failure(ErrorKind::limit, "there are " + std::to_string(processes_max) + " processes");
  }
  const bool is_main = (TRY(fields.number_or(Tag::flags, 0)) & start_main) != 0;
  const std::uint64_t linger_ms = TRY(fields.number_or(Tag::linger_ms, default_linger_ms));
  ChildSpec spec = TRY(read_spec(fields));
  spec.cgroup = cgroup_;
  Child child = TRY(start_child(spec));
  Process& process = processes_[number];
  process.number = number;
  process.spec = std::move(spec);
  process.pid = child.pid;
  process.is_main = is_main;
  process.linger_ms = linger_ms;
  process.start_request = request;
  process.report = std::move(child.report);
  process.terminal_kept = std::move(child.terminal_kept);
  if (auto opened = open_streams(process, child); !opened) {
    ::kill(child.pid, SIGKILL);
    remove(number);
    return opened;
  }
  loop_.watch(process.report.get(), EPOLLIN,
              [this, number](std::uint32_t) { read_report(number); });
  return {};
}

Result<void> ProcessTable::open_streams(Process& process, Child& child) {
  const auto connect = [&](std::uint32_t which, Fd& fd, Pump::Direction direction) -> Result<void> {
    if (!fd) return {};
    const std::uint32_t number = stream_of(process.number, which);
    Stream* stream = session_.open(number);
    if (stream == nullptr) return failure(ErrorKind::limit, "there are too many streams");
    if (direction != Pump::Direction::to_process) stream->out.emplace();
    if (direction != Pump::Direction::from_process) {
      stream->in.emplace(0, stream_window, IncomingStream::Gaps::refused);
    }
    process.pumps.push_back(
        std::make_unique<Pump>(loop_, session_, number, std::move(fd), direction));
    return {};
  };
  TRY(connect(stream_input, child.terminal, Pump::Direction::both));
  TRY(connect(stream_input, child.input, Pump::Direction::to_process));
  TRY(connect(stream_output, child.output, Pump::Direction::from_process));
  return connect(stream_errors, child.errors, Pump::Direction::from_process);
}

void ProcessTable::read_report(std::uint32_t number) {
  const auto found = processes_.find(number);
  if (found == processes_.end() || !found->second.report) return;
  Process& process = found->second;
  StartFailure start_failure;
  const ssize_t count = ::read(process.report.get(), &start_failure, sizeof start_failure);
  if (count < 0 && errno == EAGAIN) return;
  loop_.forget(process.report.get());
  process.report.reset();
  const std::uint32_t request = process.start_request.value_or(0);
  process.start_request.reset();
  FieldWriter answer;
  if (count == sizeof start_failure) {
    write_error(answer, describe(start_failure, process.spec));
    answer.number(Tag::shell_status, static_cast<std::uint64_t>(shell_status(start_failure)));
    session_.answer(request, answer);
    remove(number);  // the child is reaped like anybody's
    return;
  }
  answer.number(Tag::guest_pid, static_cast<std::uint64_t>(process.pid));
  session_.answer(request, answer);
  process.spec.arguments = {};
  process.spec.environment = {};
  if (process.end) finish(process, *process.end);
}

Result<void> ProcessTable::send_signal(const Fields& fields) {
  const Process& process = *TRY(find(fields));
  const std::uint64_t number = TRY(fields.number(Tag::signal));
  const std::uint64_t scope = TRY(fields.number_or(Tag::scope, scope_process));
  if (number >= NSIG || scope > scope_group) {
    return failure(ErrorKind::invalid_argument, "there is no such signal or scope");
  }
  if (process.end) return failure(ErrorKind::precondition, "the process has ended");
  const pid_t target = scope == scope_group ? -process.pid : process.pid;
  if (::kill(target, static_cast<int>(number)) != 0) {
    return errno_failure(errno, "cannot send the signal");
  }
  return {};
}

Result<void> ProcessTable::resize(const Fields& fields) {
  const Process& process = *TRY(find(fields));
  if (!process.spec.has_terminal || process.pumps.empty()) {
    return failure(ErrorKind::precondition, "the process has no terminal");
  }
  const winsize size{.ws_row = static_cast<std::uint16_t>(TRY(fields.number(Tag::rows))),
                     .ws_col = static_cast<std::uint16_t>(TRY(fields.number(Tag::columns))),
                     .ws_xpixel = 0,
                     .ws_ypixel = 0};
  if (::ioctl(process.pumps.front()->fd(), TIOCSWINSZ, &size) != 0) {
    return errno_failure(errno, "cannot resize the terminal");
  }
  return {};
}

Result<void> ProcessTable::forget(const Fields& fields) {
  const Process& process = *TRY(find(fields));
  if (!process.end || process.report) {
    return failure(ErrorKind::precondition, "the process has not ended");
  }
  remove(process.number);
  return {};
}

void ProcessTable::remove(std::uint32_t number) {
  const auto found = processes_.find(number);
  if (found == processes_.end()) return;
  if (found->second.report) loop_.forget(found->second.report.get());
  processes_.erase(found);
  for (const std::uint32_t which : streams) session_.close(stream_of(number, which));
}

void ProcessTable::list(FieldWriter& answer) const {
  answer.number(Tag::orphans_reaped, orphans_reaped_);
  for (const auto& [number, process] : processes_) {
    answer.number(Tag::process, number);
    answer.number(Tag::guest_pid, static_cast<std::uint64_t>(process.pid));
    answer.number(Tag::flags, (process.spec.has_terminal ? start_terminal : 0) |
                                  (process.is_main ? start_main : 0) |
                                  (process.spec.has_input ? start_with_input : 0));
    if (process.end) write_end(answer, *process.end);
    for (const std::uint32_t which : streams) {
      const Stream* stream = session_.find(stream_of(number, which));
      if (stream == nullptr) continue;
      write_positions(answer, stream_of(number, which), *stream);
    }
  }
}

void ProcessTable::reap(const Other& other) {
  int status = 0;
  for (pid_t pid = 0; (pid = ::waitpid(-1, &status, WNOHANG)) > 0;) {
    bool is_known = false;
    for (auto& [number, process] : processes_) {
      if (process.pid != pid || process.end) continue;
      is_known = true;
      process.end = status;
      // Of one that has not been said to run, the end is said after that.
      if (!process.report) finish(process, status);
      break;
    }
    if (!is_known && !other(pid, status)) ++orphans_reaped_;
  }
}

void ProcessTable::finish(Process& process, int status) {
  // From now on its terminal ends when nobody else has it open.
  process.terminal_kept.reset();
  if (process.is_main) linger_ms_ = process.linger_ms;
  FieldWriter event(EventKind::ended);
  event.number(Tag::process, process.number);
  write_end(event, status);
  session_.event(process.number, event);
}

void ProcessTable::stream_changed(std::uint32_t stream) {
  const auto found = processes_.find(stream / 4);
  if (found == processes_.end()) return;
  for (const auto& pump : found->second.pumps) pump->update();
}

}  // namespace berth::agent
