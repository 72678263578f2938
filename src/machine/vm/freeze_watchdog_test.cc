// FreezeWatchdog with real processes: this program, started again, is the watchdog's.

#include "machine/vm/freeze_watchdog.h"

#include <algorithm>
#include <charconv>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/test_support.h"
#include "machine/temporary_directory.h"
#include "machine/vm/fake_agent.h"
#include "machine/vm/guest_agent.h"
#include "testing/sim_random.h"

namespace berth::machine {
namespace {

using namespace std::chrono_literals;
using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr const char* this_program = "/proc/self/exe";

std::vector<std::string> words_of(const std::string& process) {
  std::istringstream line(read_text("/proc/" + process + "/cmdline"));
  std::vector<std::string> words;
  for (std::string word; std::getline(line, word, '\0');) words.push_back(word);
  return words;
}

/// Where this program was started as a watchdog's, it is one.
class BecomeWatchdog : public testing::Environment {
 public:
  void SetUp() override {
    const auto words = words_of("self");
    if (words.size() < 2 || words[1] != "watchdog") return;
    const auto option = [&words](const char* name) {
      const auto found = std::ranges::find(words, name);
      CHECK(found != words.end() && found + 1 != words.end());
      return *(found + 1);
    };
    ::_exit(run_freeze_watchdog(option("--agent-socket"), std::stoi(option("--fd")),
                                std::chrono::milliseconds(std::stoll(option("--limit-ms")))));
  }
};
[[maybe_unused]] const auto* const environment =
    testing::AddGlobalTestEnvironment(new BecomeWatchdog);

class FreezeWatchdogTest : public LoopTest {
 protected:
  FreezeWatchdogTest() {
    // What a watchdog's process leaves behind becomes our child: none may be left.
    CHECK(::prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    guest_->is_frozen = true;
  }
  ~FreezeWatchdogTest() override {
    end_qemu();  // what still tries to thaw has nobody to ask
    run(*loop_, until_childless());
    ::prctl(PR_SET_CHILD_SUBREAPER, 0);
  }

  FreezeWatchdog start(Duration limit) {
    return MUST(FreezeWatchdog::start(this_program, path_, limit));
  }
  void end_qemu() {
    if (guest_) run(*loop_, guest_->close());
    guest_.reset();
  }
  template <typename Predicate>
  void until(Predicate predicate) {
    run(*loop_, wait_until(std::move(predicate)));
  }
  template <typename Predicate>
  Task<> wait_until(Predicate predicate) {
    while (!predicate()) co_await loop_->sleep(1ms);  // of what another process does
  }
  Task<> until_childless() {
    while (::waitpid(-1, nullptr, WNOHANG) >= 0) co_await loop_->sleep(1ms);
  }
  /// What the guest has been asked for when everything that was sent before has arrived.
  const std::vector<std::string>& commands_so_far() {
    GuestAgent agent(*loop_, path_);
    EXPECT_TRUE(run(*loop_, agent.ping(20s)));
    run(*loop_, agent.close());
    return guest_->commands();
  }
  static bool is_ready(pid_t process) {
    // It ignores SIGTERM: bit 14 of the mask.
    std::ifstream status("/proc/" + std::to_string(process) + "/status");
    for (std::string line; std::getline(status, line);) {
      if (!line.starts_with("SigIgn:")) continue;
      return ((std::stoull(line.substr(7), nullptr, 16) >> (SIGTERM - 1)) & 1U) != 0;
    }
    return false;
  }

  ScratchDirectory directory_;
  std::string path_ = directory_ / "agent.sock";
  std::optional<FakeAgent> guest_{std::in_place, *loop_, path_};
};

TEST_F(FreezeWatchdogTest, DismissedInTimeItNeverThaws) {
  {
    FreezeWatchdog watchdog = start(1h);
    EXPECT_TRUE(watchdog.dismiss());
    EXPECT_TRUE(watchdog.dismiss());
  }
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);  // no process is left
  EXPECT_THAT(commands_so_far(), ElementsAre("guest-ping"));
  EXPECT_TRUE(guest_->is_frozen);
}

TEST_F(FreezeWatchdogTest, ThawsWhenTheLimitIsOverAndSaysSo) {
  FreezeWatchdog watchdog = start(1ms);
  until([this] { return !guest_->is_frozen; });
  EXPECT_FALSE(watchdog.dismiss());
  EXPECT_FALSE(watchdog.dismiss());
}

TEST_F(FreezeWatchdogTest, AKeeperThatForgetsItHasTheGuestThawedAtOnce) {
  {
    const FreezeWatchdog watchdog = start(1h);
  }
  until([this] { return !guest_->is_frozen; });
  guest_->is_frozen = true;
  FreezeWatchdog watchdog = start(1h);
  watchdog = start(1h);  // forgets the first one
  until([this] { return !guest_->is_frozen; });
  EXPECT_TRUE(watchdog.dismiss());
}

TEST_F(FreezeWatchdogTest, MovedItIsStillOne) {
  std::optional<FreezeWatchdog> watchdog = start(1h);
  FreezeWatchdog moved = std::move(*watchdog);
  watchdog.reset();
  EXPECT_TRUE(moved.dismiss());
  EXPECT_THAT(commands_so_far(), ElementsAre("guest-ping"));
}

TEST_F(FreezeWatchdogTest, AKeeperThatIsKilledHasTheGuestThawedAtOnce) {
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t keeper = ::fork();
  ASSERT_GE(keeper, 0);
  if (keeper == 0) {
    const auto watchdog = FreezeWatchdog::start(this_program, path_, 1h);
    if (!watchdog || ::write(ready[1], "r", 1) != 1) ::_exit(1);
    while (true) ::pause();
  }
  char byte = 0;
  ::close(ready[1]);
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  ::close(ready[0]);
  EXPECT_TRUE(guest_->is_frozen);
  ::kill(keeper, SIGKILL);
  until([this] { return !guest_->is_frozen; });
}

TEST_F(FreezeWatchdogTest, AnAgentThatIsNotRunningIsAskedWhenItIs) {
  guest_->set_running(false);
  FreezeWatchdog watchdog = start(1ms);
  until([this] { return guest_->has_client(); });
  guest_->set_running(true);
  until([this] { return !guest_->is_frozen; });
  EXPECT_FALSE(watchdog.dismiss());
}

TEST_F(FreezeWatchdogTest, AnotherClientIsWaitedFor) {
  const auto other = MUST(run(*loop_, connect_unix(*loop_, path_, 20s)));
  until([this] { return guest_->has_client(); });
  FreezeWatchdog watchdog = start(1ms);
  until([&watchdog] {
    // It has decided: the process that was started is at its end.
    return read_text("/proc/" + std::to_string(watchdog.pid()) + "/stat").find(") Z ") !=
           std::string::npos;
  });
  EXPECT_TRUE(guest_->is_frozen);
  EXPECT_FALSE(watchdog.dismiss());
  other->shutdown();
  until([this] { return !guest_->is_frozen; });
}

TEST_F(FreezeWatchdogTest, ItTriesUntilTheGuestSaysThatNothingIsFrozen) {
  int attempts = 0;
  guest_->on("guest-fsfreeze-thaw", [&](const Json&) -> std::optional<std::string> {
    switch (++attempts) {
      case 1: return "garbage\n";
      case 2: return "{\"error\": {\"class\": \"GenericError\", \"desc\": \"not now\"}}\n";
      case 3: return "{\"return\": 0}\n";  // and yet it is frozen
      default: guest_->is_frozen = false; return "{\"return\": 2}\n";
    }
  });
  FreezeWatchdog watchdog = start(1ms);
  until([this] { return !guest_->is_frozen; });
  EXPECT_EQ(attempts, 4);
  EXPECT_FALSE(watchdog.dismiss());
  until([this] { return !guest_->has_client(); });
  EXPECT_EQ(attempts, 4);
}

TEST_F(FreezeWatchdogTest, WithoutQemuItEnds) {
  end_qemu();
  FreezeWatchdog watchdog = start(1ms);
  // Both its processes, the second of which has nobody to ask.
  run(*loop_, until_childless());
}

TEST_F(FreezeWatchdogTest, SignalsDoNotEndIt) {
  FreezeWatchdog watchdog = start(1h);
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) ::kill(watchdog.pid(), number);
  until([&] { return is_ready(watchdog.pid()); });
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) ::kill(watchdog.pid(), number);
  {
    const FreezeWatchdog forgotten = std::move(watchdog);
  }
  until([this] { return !guest_->is_frozen; });
}

TEST_F(FreezeWatchdogTest, ItHasItsOwnSessionAndNothingOfOurs) {
  const int inheritable = ::open("/dev/null", O_RDWR);  // no O_CLOEXEC
  FreezeWatchdog watchdog = start(1h);
  until([&] { return is_ready(watchdog.pid()); });
  EXPECT_EQ(::getsid(watchdog.pid()), watchdog.pid());
  const std::string process = std::to_string(watchdog.pid());
  std::vector<std::string> descriptors;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/" + process + "/fd")) {
    descriptors.push_back(entry.path().filename().string() + " " +
                          std::filesystem::read_symlink(entry.path()).string());
  }
  const std::string errors = std::filesystem::read_symlink("/proc/self/fd/2").string();
  std::ranges::sort(descriptors);
  EXPECT_THAT(descriptors, ElementsAre("0 /dev/null", "1 /dev/null", "2 " + errors,
                                       testing::StartsWith("3 pipe:")));
  EXPECT_THAT(words_of(process), ElementsAre("berth", "watchdog", "--agent-socket", path_, "--fd",
                                             "3", "--limit-ms", "3600000"));
  ::close(inheritable);
  EXPECT_TRUE(watchdog.dismiss());
}

TEST_F(FreezeWatchdogTest, WithoutItsProgramThereIsNone) {
  const auto watchdog = FreezeWatchdog::start(directory_ / "missing", path_, 1h);
  ASSERT_FALSE(watchdog);
  EXPECT_EQ(watchdog.error().kind(), ErrorKind::not_found);
  EXPECT_THAT(watchdog.error().message(), HasSubstr("missing"));
}

/// Dismissed at about the moment when the limit is over: whichever was first, both say the same.
TEST_F(FreezeWatchdogTest, WhoWasFirstIsNeverInDoubt) {
  SimRandom random(1);
  int in_time = 0;
  int late = 0;
  Duration wait = 20ms;  // about as long as its process takes to start; found by trying
  for (int round = 0; round < 60; ++round) {
    guest_->is_frozen = true;
    const auto thaws = [this] {
      return std::ranges::count(guest_->commands(), std::string("guest-fsfreeze-thaw"));
    };
    const auto before = thaws();
    FreezeWatchdog watchdog = start(2ms);
    run(*loop_, [](UringLoop& loop, Duration for_so_long) -> Task<> {
      co_await loop.sleep(for_so_long);
    }(*loop_, wait + std::chrono::microseconds(random.below(2000))));
    if (watchdog.dismiss()) {
      ++in_time;
      wait += 1ms;
      static_cast<void>(commands_so_far());
      ASSERT_EQ(thaws(), before);
      ASSERT_TRUE(guest_->is_frozen);
    } else {
      ++late;
      wait = std::max<Duration>(wait - 1ms, 0ms);
      run(*loop_, until_childless());
      ASSERT_FALSE(guest_->is_frozen);
    }
  }
  EXPECT_GT(in_time, 5);
  EXPECT_GT(late, 5);
}

}  // namespace
}  // namespace berth::machine
