// The preload's side of the channel, by messages that are made here byte by byte, and by the
// client.
#include "memory/memory_channel.h"

#include <cstring>
#include <filesystem>
#include <optional>

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "memory/memory_object.h"
#include "memory/preload.h"
#include "memory/test_support.h"

namespace berth::memory {
namespace {

using testing::HasSubstr;

constexpr std::uint64_t granule = channel::granule_min;

class MemoryChannelTest : public testing::Test {
 protected:
  static constexpr std::uint64_t size = 4 * MiB;

  MemoryChannelTest() {
    write_at(file_, 0, std::string(size, 'm'));
    MUST(seal_memory_object(file_));
    write_at(pages_, 0, std::string(size, 'p'));
  }
  void start() {
    process_.emplace(MUST(clone_environment(BERTH_PRELOAD, file_, socket_)));
    process_->tell("map", file_, size);
  }
  Fd connect() const {
    Fd client(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
    std::memcpy(address.sun_path, socket_.data(), socket_.size());
    const timeval patience{.tv_sec = 20, .tv_usec = 0};
    ::setsockopt(client.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    CHECK(::connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    return client;
  }
  static channel::Request request(std::vector<channel::Range> ranges) {
    channel::Request made{};
    made.head = {.magic = channel::magic,
                 .version = channel::version,
                 .operation = channel::map,
                 .ranges = static_cast<std::uint32_t>(ranges.size()),
                 .reserved = 0};
    std::ranges::copy(ranges, std::begin(made.range));
    return made;
  }
  static void send(const Fd& client, const channel::Request& request, const std::vector<int>& fds,
                   std::optional<std::size_t> length = {}) {
    iovec data{.iov_base = const_cast<channel::Request*>(&request),
               .iov_len = length.value_or(sizeof request.head + request.head.ranges * 16)};
    alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    if (!fds.empty()) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
      std::memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
    }
    CHECK(::sendmsg(client.get(), &message, MSG_NOSIGNAL) >= 0);
  }
  static channel::Answer receive(const Fd& client) {
    channel::Answer answer{};
    CHECK(::recv(client.get(), &answer, sizeof answer, 0) == sizeof answer);
    return answer;
  }
  /// Of the process, once it serves nobody.
  std::ptrdiff_t open_descriptors() const {
    auto last = MUST(MemoryChannel::connect(socket_));
    MUST(last.describe());
    return std::distance(
        std::filesystem::directory_iterator(fmt::format("/proc/{}/fd", process_->pid())), {});
  }
  std::uint32_t ask(const channel::Request& request, const std::vector<int>& fds,
                    std::optional<std::size_t> length = {}) {
    const Fd client = connect();
    send(client, request, fds, length);
    const channel::Answer answer = receive(client);
    if (answer.status != channel::done) {
      EXPECT_EQ(answer.ranges, 0U);
      EXPECT_EQ(process_->peek(0, size), std::string(size, 'm'));
    }
    return answer.status;
  }

  ScratchDirectory directory_{memory_place};
  std::string file_ = make_file(directory_ / "template", size);
  std::string pages_ = make_file(directory_ / "pages", size + page);
  Fd pages_fd_{::open(pages_.c_str(), O_RDONLY | O_CLOEXEC)};
  std::string socket_ = directory_ / "memory.sock";
  std::optional<TrackedProcess> process_;
};

TEST_F(MemoryChannelTest, TellsWhereTheMemoryIs) {
  start();
  auto client = MUST(MemoryChannel::connect(socket_));
  const auto described = MUST(client.describe());
  EXPECT_EQ(process_->ask("address"), fmt::format("ok {}", described.address));
  EXPECT_EQ(described.size, size);
  EXPECT_EQ(described.is_clone, 1U);
  struct stat status{};
  ASSERT_EQ(::stat(file_.c_str(), &status), 0);
  EXPECT_EQ(described.device, status.st_dev);
  EXPECT_EQ(described.inode, status.st_ino);
}

TEST_F(MemoryChannelTest, MapsExactlyWhatItIsAskedFor) {
  start();
  auto client = MUST(MemoryChannel::connect(socket_));
  MUST(
      client.map(pages_fd_, std::vector<PageRange>{{.offset = granule, .length = 2 * granule},
                                                   {.offset = size - granule, .length = granule}}));
  std::string expected(size, 'm');
  expected.replace(granule, 2 * granule, 2 * granule, 'p');
  expected.replace(size - granule, granule, granule, 'p');
  EXPECT_TRUE(process_->peek(0, size) == expected);
  process_->tell("store", granule, page, 120);
  EXPECT_EQ(read_at(pages_, granule, 1), "p");
  MUST(client.map(Fd(::open(file_.c_str(), O_RDONLY | O_CLOEXEC)),
                  std::vector<PageRange>{{.offset = 0, .length = size}}));
  EXPECT_TRUE(process_->peek(0, size) == std::string(size, 'm'));
}

TEST_F(MemoryChannelTest, BeforeTheMemoryIsMappedThereIsNothingToMapOver) {
  process_.emplace(MUST(clone_environment(BERTH_PRELOAD, file_, socket_)));
  process_->ask("environment HOME");  // it is up
  auto client = MUST(MemoryChannel::connect(socket_));
  const auto described = client.describe();
  ASSERT_FALSE(described);
  EXPECT_EQ(described.error().kind(), ErrorKind::precondition);
}

TEST_F(MemoryChannelTest, MemoryThatIsMappedTwiceIsNobodysToMapOver) {
  start();
  process_->tell("map", file_, size);
  EXPECT_EQ(ask(request({{0, granule}}), {pages_fd_.get()}), channel::not_mapped);
}

TEST_F(MemoryChannelTest, RangesThatAreNotOfTheMemoryAreRefusedWhole) {
  start();
  constexpr std::uint64_t most = ~std::uint64_t{0};
  const std::vector<std::vector<channel::Range>> wrong = {
      {{size, granule}},
      {{size - granule, 2 * granule}},
      {{0, granule}, {0, granule}},
      {{2 * granule, granule}, {0, granule}},
      {{0, 0}},
      {{page, granule}},
      {{0, page}},
      {{0, most}},
      {{granule, most - granule + 1}},
      {{most - granule + 1, granule}},
      {{0, granule}, {2 * granule, size}},
  };
  for (const auto& ranges : wrong)
    EXPECT_EQ(ask(request(ranges), {pages_fd_.get()}), channel::out_of_bounds);
}

TEST_F(MemoryChannelTest, FilesThatCannotBeMappedThereAreRefused) {
  start();
  const auto all = request({{0, size}});
  EXPECT_EQ(ask(all, {}), channel::wrong_file);
  EXPECT_EQ(ask(all, {Fd(::open("/dev/zero", O_RDONLY | O_CLOEXEC)).get()}), channel::wrong_file);
  EXPECT_EQ(ask(all, {Fd(::open(pages_.c_str(), O_WRONLY | O_CLOEXEC)).get()}),
            channel::wrong_file);
  const std::string shorter = make_file(directory_ / "short", size - page);
  EXPECT_EQ(ask(all, {Fd(::open(shorter.c_str(), O_RDONLY | O_CLOEXEC)).get()}),
            channel::wrong_file);
}

TEST_F(MemoryChannelTest, WhatIsNoRequestIsAnsweredAndDoesNoHarm) {
  start();
  ask(request({}), {pages_fd_.get()});
  const auto before = open_descriptors();
  const auto good = request({{0, granule}});
  const std::vector<int> file = {pages_fd_.get()};
  for (const std::size_t length : {1UL, 15UL, 16UL, 31UL, 33UL, sizeof good})
    EXPECT_EQ(ask(good, file, length), channel::malformed);
  auto wrong = good;
  wrong.head.magic = 7;
  EXPECT_EQ(ask(wrong, file), channel::malformed);
  wrong = good;
  wrong.head.version = 2;
  EXPECT_EQ(ask(wrong, file), channel::malformed);
  wrong = good;
  wrong.head.operation = 3;
  EXPECT_EQ(ask(wrong, file), channel::malformed);
  wrong = good;
  wrong.head.ranges = ~0U;
  EXPECT_EQ(ask(wrong, file, 32), channel::malformed);
  for (const std::size_t descriptors : {2UL, 8UL}) {
    EXPECT_EQ(ask(good, std::vector<int>(descriptors, pages_fd_.get())), channel::malformed);
    EXPECT_EQ(open_descriptors(), before);
  }
  EXPECT_EQ(ask(good, file), channel::done);
}

TEST_F(MemoryChannelTest, AClientThatDiesWithARequestUnderWayLeavesNothingHalfDone) {
  start();
  ask(request({}), {pages_fd_.get()});
  const auto before = open_descriptors();
  for (int i = 0; i < 50; ++i) {
    const Fd client = connect();
    send(client, request({{0, granule}, {2 * granule, granule}}), {pages_fd_.get()});
  }
  EXPECT_EQ(open_descriptors(), before);  // who asks now is served after all of them
  std::string expected(size, 'm');
  expected.replace(0, granule, granule, 'p');
  expected.replace(2 * granule, granule, granule, 'p');
  EXPECT_TRUE(process_->peek(0, size) == expected);
}

TEST_F(MemoryChannelTest, WhoIsSilentIsHungUpOn) {
  start();
  const Fd silent = connect();
  auto next = MUST(MemoryChannel::connect(socket_));
  MUST(next.describe());
  char byte = 0;
  EXPECT_EQ(::recv(silent.get(), &byte, 1, 0), 0);
}

TEST_F(MemoryChannelTest, OtherUsersAreNotServed) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root becomes another user";
  start();
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0711), 0);
  ASSERT_EQ(::chmod(socket_.c_str(), 0777), 0);  // else they could not even connect
  const pid_t other = ::fork();
  if (other == 0) {
    if (::setresuid(65534, 65534, 65534) != 0) ::_exit(2);
    const Fd client = connect();
    char byte = 0;
    ::_exit(::recv(client.get(), &byte, 1, 0) == 0 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(other, &status, 0), other);
  EXPECT_EQ(status, 0);
}

TEST_F(MemoryChannelTest, ASocketThatAnotherProcessLeftIsReplaced) {
  start();
  process_->kill();
  const auto gone = MemoryChannel::connect(socket_);
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().kind(), ErrorKind::disconnected);
  start();
  auto client = MUST(MemoryChannel::connect(socket_));
  MUST(client.describe());
}

TEST_F(MemoryChannelTest, WhereItCannotBeServedNothingRuns) {
  for (const std::string& path : {file_, directory_ / "no/directory", std::string(200, 'x')}) {
    process_.emplace(MUST(clone_environment(BERTH_PRELOAD, file_, path)));
    EXPECT_THAT(process_->ask("environment HOME"), HasSubstr("cannot be a clone's"));
    EXPECT_EQ(process_->finish(), 1);
  }
  EXPECT_EQ(read_at(file_, 0, 1), "m");
}

TEST_F(MemoryChannelTest, ItsVariableIsNotLeft) {
  start();
  EXPECT_EQ(process_->ask("environment BERTH_MEMORY_CHANNEL"), "ok (none)");
}

}  // namespace
}  // namespace berth::memory
