#include "agent/program/hooks.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <functional>
#include <utility>

#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/program/disks.h"

namespace berth::agent {
namespace {

constexpr const char* directory = "/etc/berth/clone.d/";
constexpr std::size_t hooks_max = 32;
constexpr std::size_t output_max = 2048;  // bytes of each that are told: the last ones

bool is_executable_file(const std::string& path) {
  struct stat status{};
  return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode) &&
         (status.st_mode & 0111) != 0;
}

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status)) return "was ended by signal " + std::to_string(WTERMSIG(status));
  return "ended with exit code " + std::to_string(WEXITSTATUS(status));
}

}  // namespace

std::vector<std::string> Hooks::found() {
  // Most images have none. That is seen sooner than by opening it.
  if (::access(directory, R_OK) != 0) return {};
  std::vector<std::string> names = names_in(directory);
  std::erase_if(names,
                [](const std::string& name) { return !is_executable_file(directory + name); });
  std::ranges::sort(names, std::greater());
  return names;
}

void Hooks::run(std::vector<std::string> names, HookSettings settings, Done done) {
  settings_ = std::move(settings);
  done_ = std::move(done);
  report_ = FieldWriter();
  left_ = std::move(names);
  if (left_.size() > hooks_max) {
    return finish(failure(ErrorKind::limit, "there are more than " + std::to_string(hooks_max) +
                                                " hooks in " + directory));
  }
  start_next();
}

void Hooks::start_next() {
  if (left_.empty()) return finish({});
  spec_ = ChildSpec{.arguments = {directory + left_.back()},
                    .environment = settings_.environment,
                    .user = {.home = "/root"},
                    .cgroup = settings_.cgroup};
  output_.clear();
  is_late_ = false;
  auto child = start_child(spec_);
  if (!child) return finish(std::unexpected(std::move(child.error())));
  child_ = std::move(*child);
  auto deadline = Timer::start(loop_, settings_.limit, [this] {
    is_late_ = true;
    deadline_.reset();
    ::kill(-child_.pid, SIGKILL);
    ::kill(child_.pid, SIGKILL);
  });
  // Without a bound none may run; it is reaped, and says what there is to say.
  if (deadline) {
    deadline_ = std::move(*deadline);
  } else {
    ::kill(child_.pid, SIGKILL);
  }
  watch(child_.output);
  watch(child_.errors);
}

void Hooks::watch(const Fd& fd) {
  loop_.watch(fd.get(), EPOLLIN, [this, &fd](std::uint32_t) { read_output(fd); });
}

void Hooks::read_output(const Fd& fd) {
  std::array<char, output_max> buffer{};
  const ssize_t count = ::read(fd.get(), buffer.data(), buffer.size());
  if (count > 0) {
    output_.append(buffer.data(), static_cast<std::size_t>(count));
    if (output_.size() > output_max) output_.erase(0, output_.size() - output_max);
  } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
    loop_.forget(fd.get());
  }
}

bool Hooks::reaped(pid_t pid, int status) {
  if (pid != child_.pid) return false;
  deadline_.reset();
  for (const Fd* fd : {&child_.output, &child_.errors}) {
    // What a pipe holds at most; who has inherited it may go on writing.
    for (std::size_t taken = 0; taken < (std::size_t{64} << 10); taken += output_max) {
      read_output(*fd);
    }
    loop_.forget(fd->get());
  }
  StartFailure start_failure;
  const bool is_started =
      ::read(child_.report.get(), &start_failure, sizeof start_failure) != sizeof start_failure;
  child_ = Child();
  const std::string name = std::exchange(left_.back(), {});
  left_.pop_back();
  report_.text(Tag::hook, name);
  if (WIFSIGNALED(status)) {
    report_.number(Tag::exit_signal, static_cast<std::uint64_t>(WTERMSIG(status)));
  } else {
    report_.number(Tag::exit_code, static_cast<std::uint64_t>(WEXITSTATUS(status)));
  }
  report_.text(Tag::hook_output, output_);
  if (!is_started) {
    finish(std::unexpected(describe(start_failure, spec_)));
  } else if (is_late_) {
    finish(failure(ErrorKind::timed_out, "the hook '" + name + "' did not end in time"));
  } else if (status != 0) {
    finish(failure(ErrorKind::precondition, "the hook '" + name + "' " + how_it_ended(status)));
  } else {
    start_next();
  }
  return true;
}

void Hooks::finish(Result<void> result) {
  left_.clear();
  if (const Done done = std::exchange(done_, nullptr)) done(std::move(result));
}

}  // namespace berth::agent
