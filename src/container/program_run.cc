#include "container/program_run.h"

#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/process.h"
#include "machine/host/program.h"

namespace berth::container {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t output_kept_max = 16 * 1024;  // bytes, of the end
constexpr std::size_t words_length_max = 500;       // bytes
constexpr int look_every_ms = 100;

/// setpriv(1) has the kernel end the program with us.
machine::ProgramStart start_of(const ProgramRun& run, const std::string& path) {
  machine::ProgramStart start{.arguments = {"setpriv", "--pdeathsig", "KILL", "--", path},
                              .environment = run.environment,
                              .directory = run.directory,
                              .own_group = true};
  start.arguments.insert(start.arguments.end(), run.arguments.begin(), run.arguments.end());
  return start;
}

std::string in_seconds(std::chrono::milliseconds time) {
  return fmt::format("{:g} s", std::chrono::duration<double>(time).count());
}

/// Follows the program's output to its end; the last part of it.
Result<std::string> follow(const Fd& output, const ProgramLimits& limits) {
  const auto begin = Clock::now();
  auto moved = begin;
  std::uint64_t count = 0;
  std::string text;
  while (true) {
    pollfd watched{.fd = output.get(), .events = POLLIN, .revents = 0};
    const int ready = ::poll(&watched, 1, look_every_ms);
    if (ready > 0) {
      char buffer[4096];
      const ssize_t got = ::read(output.get(), buffer, sizeof buffer);
      if (got == 0 || (got < 0 && errno != EINTR)) return text;
      text.append(buffer, static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
      if (text.size() > output_kept_max) text.erase(0, text.size() - output_kept_max);
      moved = Clock::now();
    }
    if (limits.stop.stop_requested()) return failure(ErrorKind::cancelled, "cancelled");
    if (limits.progress) {
      const std::uint64_t found = limits.progress();
      if (found != count) moved = Clock::now();
      count = found;
    }
    const auto passed = [](Clock::time_point since, std::chrono::milliseconds limit) {
      return limit.count() != 0 && Clock::now() - since > limit;
    };
    if (passed(begin, limits.whole))
      return failure(ErrorKind::timed_out, "it has not ended within " + in_seconds(limits.whole));
    if (passed(moved, limits.stall))
      return failure(ErrorKind::timed_out, "nothing has come for " + in_seconds(limits.stall));
  }
}

}  // namespace

std::string last_words(std::string_view output) {
  while (output.ends_with('\n')) output.remove_suffix(1);
  std::string_view line = output.substr(output.rfind('\n') + 1);
  // A Go program that breaks says why before it lists where it was.
  if (const std::size_t at = output.find("panic: "); at != output.npos)
    line = output.substr(at, output.find('\n', at) - at);
  std::string words;
  // logfmt: time="…" level=fatal msg="…", with what is inside escaped as Go does.
  constexpr std::string_view mark = "msg=\"";
  if (const std::size_t at = line.find(mark); line.starts_with("time=") && at != line.npos) {
    line.remove_prefix(at + mark.size());
    for (std::size_t i = 0; i < line.size() && line[i] != '"'; ++i) {
      if (line[i] == '\\' && i + 1 < line.size()) ++i;
      words += line[i];
    }
  } else {
    words = line;
  }
  // Some draw marks and colours before what they say.
  const auto begins = [](char c) { return (c >= '!' && c <= '~'); };
  words.erase(words.begin(), std::ranges::find_if(words, begins));
  std::ranges::replace_if(words, [](char c) { return (c >= 0 && c < ' ') || c == 0x7f; }, '?');
  if (words.size() > words_length_max) words.resize(words_length_max);
  return words;
}

Result<void> run_to_end(const ProgramRun& run, const ProgramLimits& limits) {
  const std::string path = machine::find_program(run.program);
  if (path.empty()) {
    return failure(ErrorKind::precondition,
                   fmt::format("{} is missing: apt-get install {}", run.program, run.package));
  }
  auto [reading, writing] = TRY(make_pipe());
  auto child = TRY(machine::ChildProgram::start(start_of(run, path), writing));
  writing.reset();
  auto output = follow(reading, limits);
  if (!output)
    return failure(
        std::move(output).error().with_context(fmt::format("{} was ended", run.program)));
  const int status = child.wait();
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  const std::string said = last_words(*output);
  const std::string end = WIFEXITED(status) ? fmt::format("ended with {}", WEXITSTATUS(status))
                                            : fmt::format("ended by signal {}", WTERMSIG(status));
  return failure(ErrorKind::io_error, said.empty() ? fmt::format("{} {}", run.program, end)
                                                   : fmt::format("{}: {}", run.program, said));
}

}  // namespace berth::container
