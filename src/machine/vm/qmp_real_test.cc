// QmpClient and the real QEMU, without a machine in it.

#include <array>
#include <csignal>
#include <optional>
#include <string>
#include <vector>

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/gate.h"
#include "async/test_support.h"
#include "machine/vm/qmp_client.h"

namespace berth::machine {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using Connected = Result<std::unique_ptr<QmpClient>>;

/// Ended by its process id.
class RealQemu {
 public:
  static constexpr const char* program = "/usr/bin/qemu-system-x86_64";
  explicit RealQemu(const std::string& socket) {
    std::vector<std::string> words{
        program,       "-machine", "none",
        "-S",          "-display", "none",
        "-nodefaults", "-qmp",     fmt::format("unix:{},server=on,wait=off", socket)};
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    if (::posix_spawn(&process_, program, nullptr, nullptr, arguments.data(), environ) != 0)
      process_ = -1;
  }
  RealQemu(const RealQemu&) = delete;
  RealQemu& operator=(const RealQemu&) = delete;
  ~RealQemu() { kill(); }
  void kill() {
    if (process_ < 0) return;
    ::kill(process_, SIGKILL);
    ::waitpid(process_, nullptr, 0);
    process_ = -1;
  }
  void suspend() const { ::kill(process_, SIGSTOP); }

 private:
  pid_t process_ = -1;
};

class RealQemuTest : public LoopTest {
 protected:
  /// Once it listens.
  Task<Connected> connect() {
    while (true) {
      auto client = co_await QmpClient::connect(*loop_, directory_ / "qmp.sock", 20s);
      if (client || client.error().kind() != ErrorKind::disconnected) co_return client;
      co_await loop_->sleep(2ms);
    }
  }
  Result<Json> ask(QmpClient& client, std::string command, Json arguments = nullptr) {
    return run(*loop_, client.execute(std::move(command), std::move(arguments), 20s));
  }

  ScratchDirectory directory_;
};

TEST_F(RealQemuTest, AnswersRefusesTellsEventsAndDies) {
  if (::access(RealQemu::program, X_OK) != 0) GTEST_SKIP() << RealQemu::program << " is missing";
  RealQemu qemu(directory_ / "qmp.sock");
  auto client = MUST(run(*loop_, connect()));
  std::vector<std::string> events;
  int closed = 0;
  client->set_handlers([&](const std::string& event, const Json&) { events.push_back(event); },
                       [&] { ++closed; });

  const auto status = ask(*client, "query-status");
  ASSERT_TRUE(status) << status.error().message();
  EXPECT_EQ((*status)["status"], "prelaunch");
  EXPECT_EQ(ask(*client, "no-such-command").error().kind(), ErrorKind::unsupported);
  EXPECT_EQ(ask(*client, "device_del", {{"id", "none"}}).error().kind(), ErrorKind::not_found);
  EXPECT_EQ(ask(*client, "query-status", {{"x", 1}}).error().kind(), ErrorKind::precondition);
  // The longest answer of QEMU's: about 200 KiB.
  const auto schema = ask(*client, "query-qmp-schema");
  ASSERT_TRUE(schema) << schema.error().message();
  EXPECT_GT(schema->size(), 100U);
  ASSERT_TRUE(ask(*client, "cont"));
  ASSERT_TRUE(ask(*client, "stop"));
  EXPECT_THAT(events, ElementsAre("RESUME", "STOP"));

  // One client at a time; the next is served when this one has gone.
  const auto second = run(*loop_, QmpClient::connect(*loop_, directory_ / "qmp.sock", 20ms));
  EXPECT_EQ(second.error().kind(), ErrorKind::timed_out);
  run(*loop_, client->close());
  client = MUST(run(*loop_, connect()));
  client->set_handlers(nullptr, [&] { ++closed; });
  EXPECT_TRUE(ask(*client, "query-status"));

  // It dies in the middle of a command.
  qemu.suspend();
  Gate gate(*loop_);
  std::optional<Result<Json>> interrupted;
  gate.spawn([](QmpClient& of, std::optional<Result<Json>>& into) -> Task<> {
    into = co_await of.execute("query-status", nullptr, 20s);
  }(*client, interrupted));
  EXPECT_EQ(run(*loop_, client->execute("query-status", nullptr, 5ms)).error().kind(),
            ErrorKind::timed_out);
  qemu.kill();
  run(*loop_, gate.drained());
  EXPECT_EQ(interrupted->error().kind(), ErrorKind::disconnected);
  run(*loop_, client->close());
}

}  // namespace
}  // namespace berth::machine
