// run_console in a process of its own, on a pseudo-terminal or on pipes, and a machine's console.

#include "control/cli/console.h"

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/fd.h"
#include "base/result.h"
#include "control/exit_code.h"

namespace berth::control::cli {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

constexpr int wait_ms_max = 20'000;

/// The next bytes; "" at the end, or when there are none for too long.
std::string read_some(const Fd& fd, int wait_ms = wait_ms_max) {
  pollfd watched{.fd = fd.get(), .events = POLLIN, .revents = 0};
  if (::poll(&watched, 1, wait_ms) <= 0) return {};
  std::array<char, 65536> buffer;
  const ssize_t got = ::read(fd.get(), buffer.data(), buffer.size());
  return got > 0 ? std::string(buffer.data(), static_cast<std::size_t>(got)) : std::string();
}

std::string read_until(const Fd& fd, const std::string& end) {
  std::string text;
  while (text.find(end) == std::string::npos) {
    const std::string more = read_some(fd);
    if (more.empty()) break;
    text += more;
  }
  return text;
}

std::string read_to_end(const Fd& fd) {
  std::string text;
  for (std::string more = read_some(fd); !more.empty(); more = read_some(fd)) text += more;
  return text;
}

void write_all(const Fd& fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd.get(), text.data(), text.size());
    ASSERT_GT(written, 0);
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

struct Pipe {
  Pipe() {
    std::array<int, 2> ends{};
    CHECK(::pipe2(ends.data(), O_CLOEXEC) == 0);
    reading = Fd(ends[0]);
    writing = Fd(ends[1]);
  }
  Fd reading;
  Fd writing;
};

class ConsoleTest : public testing::Test {
 protected:
  ConsoleTest() {
    std::string directory = std::filesystem::temp_directory_path() / "berth-test-XXXXXX";
    CHECK(::mkdtemp(directory.data()) != nullptr);
    directory_ = directory;
    path_ = directory + "/console.sock";
    sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
    CHECK(path_.size() < sizeof address.sun_path);
    std::memcpy(address.sun_path, path_.data(), path_.size());
    listening_ = Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    CHECK(::bind(listening_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
          ::listen(listening_.get(), 1) == 0);
  }
  ~ConsoleTest() override {
    if (process_ > 0) {
      ::kill(process_, SIGKILL);
      ::waitpid(process_, nullptr, 0);
    }
    std::filesystem::remove_all(directory_);
  }

  /// run_console in a process with these as its standard input, output and error.
  void start(int input, int output, int error, const std::function<void()>& before = {}) {
    process_ = ::fork();
    ASSERT_GE(process_, 0);
    if (process_ != 0) return;
    ::setsid();
    if (::isatty(input) == 1) ::ioctl(input, TIOCSCTTY, 0);
    ::dup2(input, STDIN_FILENO);
    ::dup2(output, STDOUT_FILENO);
    ::dup2(error, STDERR_FILENO);
    ::close_range(3, ~0U, 0);
    if (before) before();
    ::_exit(run_console(path_, silence_));
  }
  void accept() {
    pollfd watched{.fd = listening_.get(), .events = POLLIN, .revents = 0};
    ASSERT_EQ(::poll(&watched, 1, wait_ms_max), 1);
    console_ = Fd(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(console_);
  }
  /// The exit code; minus the signal that ended it.
  int wait() {
    const Fd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, process_, 0)));
    pollfd watched{.fd = pidfd.get(), .events = POLLIN, .revents = 0};
    if (::poll(&watched, 1, wait_ms_max) != 1) return -1000;
    int status = 0;
    ::waitpid(process_, &status, 0);
    process_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  std::string directory_;
  std::string path_;
  Fd listening_;
  Fd console_;
  pid_t process_ = -1;
  std::chrono::milliseconds silence_{100};
};

class ConsoleOnTerminalTest : public ConsoleTest {
 protected:
  ConsoleOnTerminalTest() {
    terminal_ = Fd(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
    CHECK(terminal_ && ::grantpt(terminal_.get()) == 0 && ::unlockpt(terminal_.get()) == 0);
    std::array<char, 128> name;
    CHECK(::ptsname_r(terminal_.get(), name.data(), name.size()) == 0);
    inside_ = Fd(::open(name.data(), O_RDWR | O_NOCTTY | O_CLOEXEC));
    CHECK(::tcgetattr(inside_.get(), &before_) == 0);
  }
  void start(const std::function<void()>& before = {}) {
    ConsoleTest::start(inside_.get(), inside_.get(), inside_.get(), before);
  }
  /// Connected, and the terminal is raw.
  void start_and_accept(const std::function<void()>& before = {}) {
    start(before);
    accept();
    EXPECT_THAT(read_until(terminal_, "\n"), HasSubstr("^]"));
    wait_until([this] { return is_raw(); });
  }
  bool is_raw() const { return (settings().c_lflag & (ICANON | ISIG | ECHO)) == 0; }
  bool is_as_before() const {
    const termios now = settings();
    return now.c_iflag == before_.c_iflag && now.c_oflag == before_.c_oflag &&
           now.c_lflag == before_.c_lflag && now.c_cflag == before_.c_cflag &&
           std::memcmp(now.c_cc, before_.c_cc, sizeof now.c_cc) == 0;
  }
  termios settings() const {
    termios now{};
    EXPECT_EQ(::tcgetattr(inside_.get(), &now), 0);
    return now;
  }
  /// Of what the other process does; looks every millisecond.
  static void wait_until(const std::function<bool()>& condition) {
    for (int i = 0; i < wait_ms_max && !condition(); ++i) ::poll(nullptr, 0, 1);
    EXPECT_TRUE(condition());
  }

  Fd terminal_;  // what a terminal emulator holds
  Fd inside_;
  termios before_{};
};

TEST_F(ConsoleOnTerminalTest, EveryKeyGoesToTheGuestAndItsOutputIsLeftAlone) {
  start_and_accept();
  write_all(terminal_, "ls\r\x03\x1a\x11\x13\x04\x1c");
  EXPECT_EQ(read_until(console_, "\x1c"), "ls\r\x03\x1a\x11\x13\x04\x1c");
  write_all(console_, "\x1b[1mone\ntwo\r\n");
  EXPECT_EQ(read_until(terminal_, "two\r\n"), "\x1b[1mone\ntwo\r\n");
}

TEST_F(ConsoleOnTerminalTest, TheEscapeEndsItAndTheTerminalIsAsBefore) {
  start_and_accept();
  write_all(terminal_,
            "last\x1d"
            "never");
  EXPECT_EQ(wait(), exit_done);
  EXPECT_TRUE(is_as_before());
  EXPECT_EQ(read_to_end(console_), "last");
}

TEST_F(ConsoleOnTerminalTest, SignalsEndItAndTheTerminalIsAsBefore) {
  for (const int number : {SIGTERM, SIGHUP, SIGINT, SIGQUIT}) {
    start_and_accept();
    ::kill(process_, number);
    EXPECT_EQ(wait(), exit_cancelled) << number;
    EXPECT_TRUE(is_as_before()) << number;
  }
}

TEST_F(ConsoleOnTerminalTest, ASignalThatWasIgnoredStaysSo) {
  start_and_accept([] { std::signal(SIGHUP, SIG_IGN); });
  ::kill(process_, SIGHUP);
  write_all(terminal_, "x");
  EXPECT_EQ(read_some(console_), "x");
  EXPECT_TRUE(is_raw());
}

TEST_F(ConsoleOnTerminalTest, AWindowThatClosesEndsIt) {
  start_and_accept();
  inside_.reset();
  terminal_.reset();
  EXPECT_THAT(wait(), testing::AnyOf(exit_done, exit_cancelled));
  EXPECT_EQ(read_to_end(console_), "");
}

TEST_F(ConsoleOnTerminalTest, TheEndOfTheMachineEndsItAfterItsLastWords) {
  start_and_accept();
  write_all(console_, "reboot: Power down\r\n");
  console_.reset();
  EXPECT_EQ(wait(), exit_done);
  EXPECT_TRUE(is_as_before());
  EXPECT_THAT(read_until(terminal_, "console."),
              testing::AllOf(StartsWith("reboot: Power down\r\n"), HasSubstr("has ended")));
}

TEST_F(ConsoleOnTerminalTest, StoppedItGivesTheTerminalBackAndTakesItAgain) {
  start_and_accept();
  ::kill(process_, SIGTSTP);
  int status = 0;
  ASSERT_EQ(::waitpid(process_, &status, WUNTRACED), process_);
  EXPECT_TRUE(WIFSTOPPED(status));
  EXPECT_TRUE(is_as_before());
  ::kill(process_, SIGCONT);
  wait_until([this] { return is_raw(); });
  write_all(terminal_, "x\x1d");
  EXPECT_EQ(wait(), exit_done);
  EXPECT_TRUE(is_as_before());
  EXPECT_EQ(read_to_end(console_), "x");
}

TEST_F(ConsoleOnTerminalTest, AGuestThatTakesNoInputDoesNotKeepItFromEnding) {
  start_and_accept();
  const std::string page(4096, 'x');
  for (int i = 0; i < 300; ++i) write_all(terminal_, page);  // more than is ever under way
  write_all(terminal_, "\x1d");
  EXPECT_EQ(wait(), exit_done);
  EXPECT_TRUE(is_as_before());
}

TEST_F(ConsoleOnTerminalTest, ATerminalThatTakesNoOutputDoesNotKeepItFromEnding) {
  start_and_accept();
  ::fcntl(console_.get(), F_SETFL, O_NONBLOCK);
  const std::string page(65536, 'x');
  // Until nothing moves any more: all buffers on the way are full.
  pollfd watched{.fd = console_.get(), .events = POLLOUT, .revents = 0};
  while (::poll(&watched, 1, 100) == 1) {
    if (::write(console_.get(), page.data(), page.size()) < 0 && errno != EAGAIN) break;
  }
  ::kill(process_, SIGTERM);
  EXPECT_EQ(wait(), exit_cancelled);
  EXPECT_TRUE(is_as_before());
}

TEST_F(ConsoleOnTerminalTest, WithoutAMachineTheTerminalIsNotTouched) {
  listening_.reset();
  start();
  EXPECT_EQ(wait(), exit_not_found);
  EXPECT_TRUE(is_as_before());
  EXPECT_THAT(read_until(terminal_, "\n"), HasSubstr("the machine is not running"));
  std::filesystem::remove(path_);
  start();
  EXPECT_EQ(wait(), exit_not_found);
}

class ConsoleOnPipesTest : public ConsoleTest {
 protected:
  void start() {
    ConsoleTest::start(input_.reading.get(), output_.writing.get(), errors_.writing.get());
    input_.reading.reset();
    output_.writing.reset();
    errors_.writing.reset();
    accept();
  }
  Pipe input_;
  Pipe output_;
  Pipe errors_;
};

TEST_F(ConsoleOnPipesTest, AllInputIsSentAndAnswersArePrintedUntilTheGuestIsSilent) {
  silence_ = std::chrono::milliseconds(2000);  // longer than this process is ever held up
  start();
  write_all(input_.writing, "uname\n\x1d\x03");
  EXPECT_EQ(read_until(console_, "\x03"), "uname\n\x1d\x03");
  input_.writing.reset();
  write_all(console_, "Lin");
  EXPECT_EQ(read_some(output_.reading), "Lin");
  write_all(console_, "ux\r\n");
  EXPECT_EQ(wait(), exit_done);
  EXPECT_EQ(read_to_end(output_.reading), "ux\r\n");
  EXPECT_EQ(read_to_end(errors_.reading), "");
  EXPECT_EQ(read_to_end(console_), "");  // it is the client that left
}

TEST_F(ConsoleOnPipesTest, WithoutAnyInputItPrintsUntilTheMachineEnds) {
  input_.writing.reset();
  start();
  for (const char* line : {"one\r\n", "two\r\n"}) {
    EXPECT_EQ(read_some(output_.reading, 2 * static_cast<int>(silence_.count())), "");
    write_all(console_, line);
    EXPECT_EQ(read_some(output_.reading), line);
  }
  console_.reset();
  EXPECT_EQ(wait(), exit_done);
}

TEST_F(ConsoleOnPipesTest, MuchGoesBothWaysWhole) {
  start();
  std::string sent;
  for (int i = 0; sent.size() < (4U << 20U); ++i) sent += std::to_string(i) + "\n";
  // An echo of it all, in a process of its own: no end waits for the other.
  const pid_t echo = ::fork();
  ASSERT_GE(echo, 0);
  if (echo == 0) {
    input_.writing.reset();
    std::size_t left = sent.size();
    while (left > 0) {
      const std::string part = read_some(console_);
      if (part.empty()) ::_exit(1);
      write_all(console_, part);
      left -= part.size();
    }
    ::_exit(0);
  }
  console_.reset();
  const pid_t writer = ::fork();
  ASSERT_GE(writer, 0);
  if (writer == 0) {
    write_all(input_.writing, sent);
    ::_exit(0);
  }
  input_.writing.reset();
  const std::string received = read_to_end(output_.reading);
  EXPECT_EQ(received.size(), sent.size());
  EXPECT_TRUE(received == sent);
  EXPECT_EQ(wait(), exit_done);
  for (const pid_t process : {echo, writer}) {
    int status = -1;
    EXPECT_EQ(::waitpid(process, &status, 0), process);
    EXPECT_EQ(status, 0);
  }
}

TEST_F(ConsoleOnPipesTest, AReaderThatLeavesEndsIt) {
  start();
  output_.reading.reset();
  write_all(console_, "nobody reads this\r\n");
  EXPECT_EQ(wait(), exit_done);
}

TEST_F(ConsoleOnPipesTest, OutputIsAppendedToAFile) {
  const std::string log = directory_ + "/log";
  const Fd file(::open(log.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  write_all(file, "before\n");
  output_.writing = Fd(::dup(file.get()));
  input_.writing.reset();
  start();
  write_all(console_, "after\n");
  console_.reset();
  EXPECT_EQ(wait(), exit_done);
  ASSERT_EQ(::lseek(file.get(), 0, SEEK_SET), 0);
  EXPECT_EQ(read_to_end(file), "before\nafter\n");
}

}  // namespace
}  // namespace berth::control::cli
