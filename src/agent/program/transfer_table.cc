#include "agent/program/transfer_table.h"

#include <array>
#include <cerrno>
#include <csignal>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/program/archive.h"
#include "agent/program/child.h"
#include "agent/program/connection_table.h"
#include "agent/program/small_files.h"

namespace berth::agent {
namespace {

constexpr std::size_t report_max = 4096;  // bytes: a pipe takes them at once

struct Work {
  TransferTable::Direction direction{};
  std::string path;
  std::uint64_t flags = 0;
};

struct Ends {
  Fd ours, childs;
};

Result<Ends> make_pipe(bool child_reads) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return errno_failure(errno, "cannot make a pipe");
  Ends made{.ours = Fd(ends[child_reads ? 1 : 0]), .childs = Fd(ends[child_reads ? 0 : 1])};
  ::fcntl(made.ours.get(), F_SETFL, O_NONBLOCK);
  return made;
}

/// As the agent's copy, so everything of the agent's that is open has to go.
[[noreturn]] void run_child(const Work& work, const Fd& data, const Fd& report) {
  constexpr int data_fd = 3;
  constexpr int report_fd = 4;
  constexpr int above = 16;  // out of each other's way
  const int data_copy = ::fcntl(data.get(), F_DUPFD, above);
  const int report_copy = ::fcntl(report.get(), F_DUPFD, above);
  if (data_copy < 0 || report_copy < 0 || ::dup2(data_copy, data_fd) < 0 ||
      ::dup2(report_copy, report_fd) < 0 || ::close_range(report_fd + 1, ~0U, 0) != 0) {
    ::_exit(1);
  }
  (void)write_setting("/proc/self/oom_score_adj", "0");
  reset_signals();
  std::signal(SIGPIPE, SIG_IGN);  // it is an error like any other
  ::umask(022);                   // of directories that no entry names
  const auto done = work.direction == TransferTable::Direction::from_guest
                        ? pack(work.path, data_fd)
                        : unpack(work.path, work.flags, data_fd);
  if (done) ::_exit(0);
  std::string text(to_string(done.error().kind()));
  text += '\n' + done.error().message();
  text.resize(std::min(text.size(), report_max));
  (void)::write(report_fd, text.data(), text.size());
  ::_exit(1);
}

Error read_report(const Fd& report, const std::string& path) {
  std::array<char, report_max> buffer{};
  const ssize_t count = ::read(report.get(), buffer.data(), buffer.size());
  const std::string_view text(buffer.data(), count > 0 ? static_cast<std::size_t>(count) : 0);
  const std::size_t line = text.find('\n');
  if (line == std::string_view::npos) {
    return Error(ErrorKind::internal, "who was at work on " + path + " has ended without a word");
  }
  return Error(error_kind_from_string(text.substr(0, line)), std::string(text.substr(line + 1)));
}

}  // namespace

Result<void> TransferTable::start(std::uint32_t request, const Fields& fields,
                                  Direction direction) {
  const std::uint32_t number = TRY(read_new_stream(fields, session_));
  Work work{.direction = direction,
            .path = TRY(fields.text(Tag::path)),
            .flags = TRY(fields.number_or(Tag::flags, 0))};
  if (!work.path.starts_with('/')) {
    return failure(ErrorKind::invalid_argument, "'" + work.path + "' is not an absolute path");
  }
  const bool is_in = direction == Direction::to_guest;
  if ((work.flags & ~(is_in ? archive_keep_owners : 0)) != 0) {
    return failure(ErrorKind::invalid_argument, "there is no such flag of an archive");
  }
  if (transfers_.size() >= transfers_max) {
    return failure(ErrorKind::limit,
                   "there are " + std::to_string(transfers_max) + " archives on their way");
  }
  Ends data = TRY(make_pipe(is_in));
  Ends report = TRY(make_pipe(false));
  Stream* stream = session_.open(number);
  if (stream == nullptr) return failure(ErrorKind::limit, "there are too many streams");
  const pid_t pid = ::fork();
  if (pid < 0) {
    session_.close(number);
    return errno_failure(errno, "cannot fork");
  }
  if (pid == 0) run_child(work, data.childs, report.childs);
  if (is_in) {
    stream->in.emplace(0, stream_window, IncomingStream::Gaps::refused);
  } else {
    stream->out.emplace();
  }
  transfers_[number] = {.request = request,
                        .path = std::move(work.path),
                        .pid = pid,
                        .report = std::move(report.ours),
                        .pump = std::make_unique<Pump>(
                            loop_, session_, number, std::move(data.ours),
                            is_in ? Pump::Direction::to_process : Pump::Direction::from_process)};
  return {};
}

void TransferTable::answer(Transfer& transfer, const std::optional<Error>& error) {
  if (!transfer.request) return;
  FieldWriter answer;
  if (error) write_error(answer, *error);
  session_.answer(*transfer.request, answer);
  transfer.request.reset();
}

bool TransferTable::reaped(pid_t pid, int status) {
  for (auto next = transfers_.begin(); next != transfers_.end(); ++next) {
    auto& [number, transfer] = *next;
    if (transfer.pid != pid) continue;
    transfer.pid = -1;
    if (status == 0) {
      answer(transfer, std::nullopt);
      // What was packed is still on its way to the host.
      if (const Stream* stream = session_.find(number); stream != nullptr && stream->out)
        return true;
    } else {
      answer(transfer, read_report(transfer.report, transfer.path));
    }
    transfers_.erase(next);
    session_.close(number);
    return true;
  }
  return false;
}

void TransferTable::close(std::uint32_t stream) {
  const auto found = transfers_.find(stream);
  if (found == transfers_.end()) return;
  Transfer& transfer = found->second;
  if (transfer.pid > 0) ::kill(transfer.pid, SIGKILL);
  answer(transfer, Error(ErrorKind::cancelled, "the stream was closed"));
  transfers_.erase(found);
  session_.close(stream);
}

void TransferTable::list(FieldWriter& answer) const {
  for (const auto& [number, transfer] : transfers_) {
    const Stream* stream = session_.find(number);
    if (stream == nullptr) continue;
    answer.number(Tag::transfer, number);
    answer.text(Tag::path, transfer.path);
    write_positions(answer, number, *stream);
  }
}

void TransferTable::stream_changed(std::uint32_t stream) {
  const auto found = transfers_.find(stream);
  if (found != transfers_.end()) found->second.pump->update();
}

void TransferTable::drop_ended() {
  for (auto next = transfers_.begin(); next != transfers_.end();) {
    const auto& [number, transfer] = *next;
    const Stream* stream = session_.find(number);
    if (transfer.pid > 0 || (stream != nullptr && stream->out && !stream->out->is_over())) {
      ++next;
      continue;
    }
    const std::uint32_t ended = number;
    next = transfers_.erase(next);
    session_.close(ended);
  }
}

}  // namespace berth::agent
