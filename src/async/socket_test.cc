// What is checked here: bytes arrive in order and whole, whatever the sizes; both ends learn of
// every kind of end at once; listening sockets can be handed over; nothing waits for ever.
#include "async/socket.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "async/test_support.h"
#include "base/units.h"

namespace berth {
namespace {

using namespace std::chrono_literals;

struct Pair {
  std::unique_ptr<SocketStream> left;
  std::unique_ptr<SocketStream> right;
};

Pair make_pair(UringLoop& loop) {
  std::array<int, 2> fds{};
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) == 0);
  auto left = MUST(SocketStream::adopt(loop, Fd(fds[0])));
  return {.left = std::move(left), .right = MUST(SocketStream::adopt(loop, Fd(fds[1])))};
}

std::vector<std::byte> pattern(std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i)
    bytes[i] = static_cast<std::byte>((i ^ (i >> 8) ^ (i >> 16)) & 0xff);
  return bytes;
}

Task<Result<void>> write_text(Stream& stream, std::string text) {
  const Bytes part = as_bytes(text);
  co_return co_await stream.write_all({&part, 1});
}

Task<Result<std::string>> read_text(Stream& stream, std::size_t length) {
  std::vector<std::byte> bytes(length);
  CO_TRY(co_await stream.read_exactly(bytes));
  co_return std::string(as_text(bytes));
}

class SocketTest : public LoopTest {
 protected:
  SocketTest() : pair_(make_pair(*loop_)) {}
  Pair pair_;
};

TEST_F(SocketTest, ReadsWhatIsThereAndWaitsForTheRest) {
  const auto talk = [](Pair& pair) -> Task<Result<void>> {
    CO_TRY(co_await write_text(*pair.left, "hello"));
    std::array<std::byte, 100> buffer{};
    EXPECT_EQ(CO_TRY(co_await pair.right->read_some(buffer)), 5U);
    EXPECT_EQ(as_text(buffer).substr(0, 5), "hello");
    EXPECT_EQ(CO_TRY(co_await pair.right->read_some(MutableBytes{})), 0U);
    CO_TRY(co_await pair.left->write_all({}));
    co_return Result<void>{};
  };
  run_test(*loop_, talk(pair_));
}

Task<> send_slowly(Loop& loop, Stream& stream) {
  for (const char c : std::string("slow")) {
    for (int i = 0; i < 3; ++i) co_await loop.yield();
    EXPECT_TRUE((co_await write_text(stream, std::string(1, c))).has_value());
  }
}

TEST_F(SocketTest, ReadExactlyGathersPieces) {
  Gate gate(*loop_);
  gate.spawn(send_slowly(*loop_, *pair_.left));
  EXPECT_EQ(run(*loop_, read_text(*pair_.right, 4)).value(), "slow");
  run(*loop_, gate.drained());
}

Task<> write_parts(Stream& stream, const std::vector<std::byte>& bytes, std::size_t step) {
  std::vector<Bytes> parts;
  for (std::size_t at = 0; at < bytes.size(); at += step) {
    parts.push_back(Bytes(bytes).subspan(at, std::min(step, bytes.size() - at)));
    parts.emplace_back();  // empty parts do no harm
  }
  EXPECT_TRUE((co_await stream.write_all(parts)).has_value());
}

TEST_F(SocketTest, LargeWritesOfManyPartsArriveWhole) {
  const auto sent = pattern(4 * MiB);
  for (const std::size_t step : {std::size_t{4 * MiB}, std::size_t{100'003}, std::size_t{4097}}) {
    Gate gate(*loop_);
    std::vector<std::byte> received(sent.size());
    gate.spawn(write_parts(*pair_.left, sent, step));
    EXPECT_EQ(gate.size(), 1U) << "no socket buffer holds that much";
    run_test(*loop_, pair_.right->read_exactly(received));
    run(*loop_, gate.drained());
    EXPECT_TRUE(sent == received) << step;
  }
}

TEST_F(SocketTest, BothDirectionsGoOnAtOnce) {
  const auto sent = pattern(3 * MiB);
  Gate gate(*loop_);
  std::vector<std::byte> received_left(sent.size());
  std::vector<std::byte> received_right(sent.size());
  const auto read_all = [](Stream& stream, std::vector<std::byte>& into) -> Task<> {
    EXPECT_TRUE((co_await stream.read_exactly(into)).has_value());
  };
  gate.spawn(write_parts(*pair_.left, sent, 10'000));
  gate.spawn(write_parts(*pair_.right, sent, 10'000));
  gate.spawn(read_all(*pair_.left, received_left));
  gate.spawn(read_all(*pair_.right, received_right));
  run(*loop_, gate.drained());
  EXPECT_TRUE(sent == received_left);
  EXPECT_TRUE(sent == received_right);
}

TEST_F(SocketTest, TheEndOfTheStreamReadsAsZeroBytes) {
  const auto talk = [](Pair& pair) -> Task<Result<void>> {
    CO_TRY(co_await write_text(*pair.left, "bye"));
    pair.left.reset();
    EXPECT_EQ(CO_TRY(co_await read_text(*pair.right, 3)), "bye");
    std::array<std::byte, 8> buffer{};
    EXPECT_EQ(CO_TRY(co_await pair.right->read_some(buffer)), 0U);
    EXPECT_EQ((co_await pair.right->read_exactly(buffer)).error().kind(), ErrorKind::disconnected);
    co_return Result<void>{};
  };
  run_test(*loop_, talk(pair_));
}

TEST_F(SocketTest, FinishWritingEndsOneDirectionOnly) {
  const auto talk = [](Pair& pair) -> Task<Result<void>> {
    CO_TRY(co_await write_text(*pair.left, "question"));
    CO_TRY(co_await pair.left->finish_writing());
    EXPECT_EQ(CO_TRY(co_await read_text(*pair.right, 8)), "question");
    std::array<std::byte, 8> buffer{};
    EXPECT_EQ(CO_TRY(co_await pair.right->read_some(buffer)), 0U);
    CO_TRY(co_await write_text(*pair.right, "answer"));
    EXPECT_EQ(CO_TRY(co_await read_text(*pair.left, 6)), "answer");
    EXPECT_EQ((co_await write_text(*pair.left, "more")).error().kind(), ErrorKind::disconnected);
    co_return Result<void>{};
  };
  run_test(*loop_, talk(pair_));
}

TEST_F(SocketTest, WritingToAPeerThatIsGoneIsDisconnected) {
  pair_.right.reset();
  const auto outcome = run(*loop_, write_text(*pair_.left, "anybody?"));
  ASSERT_FALSE(outcome.has_value());
  EXPECT_EQ(outcome.error().kind(), ErrorKind::disconnected) << outcome.error().message();
}

TEST_F(SocketTest, ShutdownEndsAPendingReadAndAPendingWrite) {
  const auto sent = pattern(4 * MiB);
  Gate gate(*loop_);
  int ended = 0;
  const auto read = [](Stream& stream, int& count) -> Task<> {
    std::array<std::byte, 8> buffer{};
    EXPECT_EQ((co_await stream.read_some(buffer)).error().kind(), ErrorKind::disconnected);
    ++count;
  };
  const auto write = [](Stream& stream, Bytes bytes, int& count) -> Task<> {
    EXPECT_EQ((co_await stream.write_all({&bytes, 1})).error().kind(), ErrorKind::disconnected);
    ++count;
  };
  gate.spawn(read(*pair_.left, ended));
  gate.spawn(write(*pair_.left, sent, ended));
  const auto settle = [](Loop& loop) -> Task<> {
    for (int i = 0; i < 10; ++i) co_await loop.yield();
  };
  run(*loop_, settle(*loop_));
  EXPECT_EQ(ended, 0);
  pair_.left->shutdown();
  pair_.left->shutdown();
  run(*loop_, gate.drained());
  EXPECT_EQ(ended, 2);
  run(*loop_, read(*pair_.left, ended));
  run(*loop_, write(*pair_.left, sent, ended));
  EXPECT_EQ(ended, 4);
}

TEST_F(SocketTest, AKilledPeerIsTheEndOfTheStream) {
  std::array<int, 2> fds{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(fds[0]);
    if (::write(fds[1], "x", 1) != 1) ::_exit(1);
    while (true) ::pause();
  }
  ::close(fds[1]);
  const auto stream = MUST(SocketStream::adopt(*loop_, Fd(fds[0])));
  const auto read_then_kill = [](Stream& from, pid_t peer) -> Task<Result<void>> {
    EXPECT_EQ(CO_TRY(co_await read_text(from, 1)), "x");
    ::kill(peer, SIGKILL);
    std::array<std::byte, 8> buffer{};
    EXPECT_EQ(CO_TRY(co_await from.read_some(buffer)), 0U);
    co_return Result<void>{};
  };
  run_test(*loop_, read_then_kill(*stream, child));
  ::waitpid(child, nullptr, 0);
}

TEST_F(SocketTest, APeerThatSendsWithoutAPauseDoesNotStarveOthers) {
  const auto sent = pattern(64 * KiB);
  run(*loop_, write_parts(*pair_.left, sent, sent.size()));
  Gate gate(*loop_);
  std::size_t read = 0;
  std::size_t read_when_other_ran = 0;
  const auto read_bytewise = [](Stream& stream, std::size_t& count) -> Task<> {
    std::byte one{};
    while (count < 64 * KiB && (co_await stream.read_some({&one, 1})).value_or(0) == 1) ++count;
  };
  const auto other = [](Loop& loop, const std::size_t& count, std::size_t& seen) -> Task<> {
    co_await loop.yield();
    seen = count;
  };
  gate.spawn(read_bytewise(*pair_.right, read));
  gate.spawn(other(*loop_, read, read_when_other_ran));
  run(*loop_, gate.drained());
  EXPECT_EQ(read, 64 * KiB);
  EXPECT_LT(read_when_other_ran, 1000U);
}

TEST_F(SocketTest, WhatIsNotAConnectedSocketIsRefused) {
  EXPECT_FALSE(
      SocketStream::adopt(*loop_, Fd(::open("/dev/null", O_RDWR | O_CLOEXEC))).has_value());
  EXPECT_FALSE(SocketStream::adopt(*loop_, Fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)))
                   .has_value());
}

TEST_F(SocketTest, ASocketSetNotToBlockIsAdoptedAllTheSame) {
  std::array<int, 2> fds{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds.data()), 0);
  const auto left = MUST(SocketStream::adopt(*loop_, Fd(fds[0])));
  const auto right = MUST(SocketStream::adopt(*loop_, Fd(fds[1])));
  Gate gate(*loop_);
  gate.spawn(send_slowly(*loop_, *left));
  EXPECT_EQ(run(*loop_, read_text(*right, 4)).value(), "slow");
  run(*loop_, gate.drained());
}

class ListenerTest : public LoopTest {
 protected:
  ScratchDirectory scratch_;
};

Task<Result<void>> exchange(std::unique_ptr<Stream> client, std::unique_ptr<Stream> server) {
  CO_TRY(co_await write_text(*client, "ping"));
  EXPECT_EQ(CO_TRY(co_await read_text(*server, 4)), "ping");
  CO_TRY(co_await write_text(*server, "pong"));
  EXPECT_EQ(CO_TRY(co_await read_text(*client, 4)), "pong");
  co_return Result<void>{};
}

Task<Result<void>> connect_unix_and_exchange(UringLoop& loop, SocketListener& listener,
                                             std::string path) {
  auto client = CO_TRY(co_await connect_unix(loop, path, 10s));
  auto server = CO_TRY(co_await listener.accept());
  EXPECT_EQ(client->peer(), "unix");
  co_return co_await exchange(std::move(client), std::move(server));
}

TEST_F(ListenerTest, AcceptsOnAUnixPath) {
  const auto listener = MUST(SocketListener::listen_unix(*loop_, scratch_ / "nbd.sock"));
  struct stat status{};
  ASSERT_EQ(::stat((scratch_ / "nbd.sock").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0077U, 0U);
  EXPECT_EQ(listener->port(), 0U);
  run_test(*loop_, connect_unix_and_exchange(*loop_, *listener, scratch_ / "nbd.sock"));
}

TEST_F(ListenerTest, UnixPathsMayBeLong) {
  const std::string deep = scratch_ / std::string(120, 'd');
  std::filesystem::create_directory(deep);
  const auto listener = MUST(SocketListener::listen_unix(*loop_, deep + "/nbd.sock"));
  run_test(*loop_, connect_unix_and_exchange(*loop_, *listener, deep + "/nbd.sock"));
  EXPECT_EQ(SocketListener::listen_unix(*loop_, deep + "/" + std::string(120, 'n')).error().kind(),
            ErrorKind::invalid_argument);
  EXPECT_EQ(SocketListener::listen_unix(*loop_, "").error().kind(), ErrorKind::invalid_argument);
}

TEST_F(ListenerTest, TakesOverAPathThatNobodyListensOnAndNoOther) {
  auto first = MUST(SocketListener::listen_unix(*loop_, scratch_ / "s"));
  EXPECT_EQ(SocketListener::listen_unix(*loop_, scratch_ / "s").error().kind(), ErrorKind::in_use);
  first.reset();
  const auto second = MUST(SocketListener::listen_unix(*loop_, scratch_ / "s"));
  run_test(*loop_, connect_unix_and_exchange(*loop_, *second, scratch_ / "s"));
}

TEST_F(ListenerTest, DoesNotReplaceAFile) {
  {
    const Fd file(::open((scratch_ / "s").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  }
  const auto listener = SocketListener::listen_unix(*loop_, scratch_ / "s");
  EXPECT_FALSE(listener.has_value());
  EXPECT_TRUE(std::filesystem::is_regular_file(scratch_ / "s"));
}

Task<Result<void>> connect_tcp_and_exchange(UringLoop& loop, SocketListener& listener,
                                            TcpAddress address) {
  auto client = CO_TRY(co_await connect_tcp(loop, address, 10s));
  auto server = CO_TRY(co_await listener.accept());
  EXPECT_EQ(client->peer(),
            (TcpAddress{.host = address.host == "localhost" ? "127.0.0.1" : address.host,
                        .port = address.port}
                 .to_string()));
  co_return co_await exchange(std::move(client), std::move(server));
}

TEST_F(ListenerTest, AcceptsOnTcp) {
  const auto listener = MUST(SocketListener::listen_tcp(*loop_, {.host = "127.0.0.1", .port = 0}));
  EXPECT_NE(listener->port(), 0U);
  run_test(*loop_, connect_tcp_and_exchange(*loop_, *listener,
                                            {.host = "127.0.0.1", .port = listener->port()}));
  run_test(*loop_, connect_tcp_and_exchange(*loop_, *listener,
                                            {.host = "localhost", .port = listener->port()}));
}

TEST_F(ListenerTest, AcceptsOnTcpVersion6) {
  const auto listener = SocketListener::listen_tcp(*loop_, {.host = "::1", .port = 0});
  if (!listener) GTEST_SKIP() << "no IPv6 here: " << listener.error().message();
  run_test(*loop_, connect_tcp_and_exchange(*loop_, **listener,
                                            {.host = "::1", .port = (*listener)->port()}));
}

TEST_F(ListenerTest, APortInUseIsRefusedAndFreeAgainAtOnce) {
  auto first = MUST(SocketListener::listen_tcp(*loop_, {.host = "127.0.0.1", .port = 0}));
  const TcpAddress address{.host = "127.0.0.1", .port = first->port()};
  EXPECT_EQ(SocketListener::listen_tcp(*loop_, address).error().kind(), ErrorKind::in_use);
  run_test(*loop_, connect_tcp_and_exchange(*loop_, *first, address));
  first.reset();
  EXPECT_TRUE(SocketListener::listen_tcp(*loop_, address).has_value());
}

TEST_F(ListenerTest, CloseEndsAPendingAcceptAndLeavesTheSocketToOthers) {
  auto listener = MUST(SocketListener::listen_unix(*loop_, scratch_ / "s"));
  const int passed_on = ::fcntl(listener->fd(), F_DUPFD_CLOEXEC, 0);
  Gate gate(*loop_);
  const auto accept = [](Listener& on) -> Task<> {
    EXPECT_EQ((co_await on.accept()).error().kind(), ErrorKind::cancelled);
    EXPECT_EQ((co_await on.accept()).error().kind(), ErrorKind::cancelled) << "closed for good";
  };
  gate.spawn(accept(*listener));
  const auto settle = [](Loop& loop) -> Task<> { co_await loop.sleep(1ms); };
  run(*loop_, settle(*loop_));
  listener->close();
  run(*loop_, gate.drained());
  listener.reset();
  const auto heir = MUST(SocketListener::adopt(*loop_, Fd(passed_on)));
  run_test(*loop_, connect_unix_and_exchange(*loop_, *heir, scratch_ / "s"));
}

TEST_F(ListenerTest, AListenerSetNotToBlockStillWaits) {
  const auto listener = MUST(SocketListener::listen_unix(*loop_, scratch_ / "s"));
  ASSERT_EQ(::fcntl(listener->fd(), F_SETFL, O_NONBLOCK), 0);
  Gate gate(*loop_);
  const auto connect_later = [](UringLoop& loop, std::string path) -> Task<> {
    co_await loop.sleep(1ms);
    EXPECT_TRUE((co_await connect_unix(loop, path, 10s)).has_value());
  };
  gate.spawn(connect_later(*loop_, scratch_ / "s"));
  EXPECT_TRUE(run(*loop_, listener->accept()).has_value());
  run(*loop_, gate.drained());

  const auto accept = [](Listener& on) -> Task<> {
    EXPECT_EQ((co_await on.accept()).error().kind(), ErrorKind::cancelled);
  };
  gate.spawn(accept(*listener));
  const auto settle = [](Loop& loop) -> Task<> { co_await loop.sleep(1ms); };
  run(*loop_, settle(*loop_));
  listener->close();
  run(*loop_, gate.drained());
}

TEST_F(ListenerTest, WhatDoesNotListenIsRefused) {
  EXPECT_EQ(SocketListener::adopt(*loop_, Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)))
                .error()
                .kind(),
            ErrorKind::invalid_argument);
}

TEST_F(ListenerTest, ConnectingWhereNobodyListensFails) {
  EXPECT_EQ(run(*loop_, connect_unix(*loop_, scratch_ / "s", 10s)).error().kind(),
            ErrorKind::not_found);
  {
    MUST(SocketListener::listen_unix(*loop_, scratch_ / "s"));
  }
  EXPECT_EQ(run(*loop_, connect_unix(*loop_, scratch_ / "s", 10s)).error().kind(),
            ErrorKind::disconnected);
  TcpAddress address{.host = "127.0.0.1"};
  address.port = MUST(SocketListener::listen_tcp(*loop_, address))->port();
  const auto outcome = run(*loop_, connect_tcp(*loop_, address, 10s));
  EXPECT_EQ(outcome.error().kind(), ErrorKind::disconnected);
  EXPECT_EQ(outcome.error().message(),
            "cannot connect to " + address.to_string() + ": Connection refused");
}

TEST_F(ListenerTest, ConnectingIsBoundedInTime) {
  // A backlog of one that nobody empties: the second or third connection waits.
  const Fd listening(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  ASSERT_EQ(::bind(listening.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::listen(listening.get(), 0), 0);
  ASSERT_EQ(::getsockname(listening.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  const TcpAddress target{.host = "127.0.0.1", .port = ntohs(address.sin_port)};
  std::vector<std::unique_ptr<Stream>> taken;
  auto outcome = run(*loop_, connect_tcp(*loop_, target, 50ms));
  while (outcome && taken.size() < 10) {
    taken.push_back(std::move(*outcome));
    outcome = run(*loop_, connect_tcp(*loop_, target, 50ms));
  }
  ASSERT_FALSE(outcome.has_value());
  EXPECT_EQ(outcome.error().kind(), ErrorKind::timed_out) << outcome.error().message();
}

TEST_F(ListenerTest, NamesThatDoNotExistAreNotFound) {
  EXPECT_EQ(
      run(*loop_, connect_tcp(*loop_, {.host = "no such host", .port = 1}, 10s)).error().kind(),
      ErrorKind::not_found);
}

TEST(TcpAddressTest, IsReadAndWrittenInBothVersions) {
  const auto version_4 = MUST(TcpAddress::parse("192.0.2.1:10809"));
  EXPECT_EQ(version_4.host, "192.0.2.1");
  EXPECT_EQ(version_4.port, 10809);
  EXPECT_EQ(version_4.to_string(), "192.0.2.1:10809");
  const auto version_6 = MUST(TcpAddress::parse("[2001:db8::1]:10809"));
  EXPECT_EQ(version_6.host, "2001:db8::1");
  EXPECT_EQ(version_6.to_string(), "[2001:db8::1]:10809");
  EXPECT_EQ(MUST(TcpAddress::parse("host.example:0")).host, "host.example");
}

TEST(TcpAddressTest, WhatIsNotAnAddressIsRefused) {
  for (const std::string text :
       {"", "host", ":1", "host:", "host:65536", "host:-1", "host:1x", "::1:80", "[]:1", "[::1]"}) {
    const auto address = TcpAddress::parse(text);
    EXPECT_FALSE(address.has_value()) << text;
  }
}

}  // namespace
}  // namespace berth
