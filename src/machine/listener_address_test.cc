#include "machine/listener_address.h"

#include <gtest/gtest.h>

#include "async/socket.h"
#include "async/uring_loop.h"
#include "machine/temporary_directory.h"

namespace berth::machine {
namespace {

TEST(ListenerAddress, KnowsLoopback) {
  for (const char* host : {"127.0.0.1", "127.9.8.7", "::1", "::ffff:127.0.0.1"}) {
    EXPECT_TRUE((ListenerAddress{.host = host, .port = 1}.is_loopback())) << host;
  }
  for (const char* host :
       {"0.0.0.0", "::", "10.0.0.1", "128.0.0.1", "fe80::1", "::ffff:10.0.0.1", "localhost", ""}) {
    EXPECT_FALSE((ListenerAddress{.host = host, .port = 1}.is_loopback())) << host;
  }
  EXPECT_TRUE((ListenerAddress{.unix_path = "/s"}.is_loopback()));
}

TEST(ListenerAddress, AsksASocketWhereItListens) {
  const auto loop = UringLoop::create().value();
  const TemporaryDirectory directory;
  const auto unix_listener = SocketListener::listen_unix(*loop, directory / "s").value();
  EXPECT_EQ(address_of(unix_listener->fd()).value(), ListenerAddress{.unix_path = directory / "s"});

  const auto tcp_listener =
      SocketListener::listen_tcp(*loop, {.host = "127.0.0.1", .port = 0}).value();
  const auto address = address_of(tcp_listener->fd()).value();
  EXPECT_EQ(address.host, "127.0.0.1");
  EXPECT_EQ(address.port, tcp_listener->port());
  EXPECT_TRUE(is_at(address, "127.0.0.1", address.port));
  EXPECT_TRUE(is_at(address, "localhost", address.port));
  EXPECT_FALSE(is_at(address, "127.0.0.2", address.port));
  EXPECT_FALSE(is_at(address, "127.0.0.1", 0));
  EXPECT_FALSE(address_of(0));
  EXPECT_FALSE(address_of(-1));
}

TEST(ListenerAddress, IsWrittenAsAUri) {
  const ListenerAddress path{.unix_path = "/run/a b/s"};
  EXPECT_EQ(nbd_uri(path, "", "disk@c1", false), "nbd+unix:///disk@c1?socket=/run/a%20b/s");
  EXPECT_EQ(nbd_uri(path, "", "disk", true), "nbds+unix:///disk?socket=/run/a%20b/s");
  EXPECT_EQ(nbd_uri({.host = "::1", .port = 10809}, "", "disk", false), "nbd://[::1]:10809/disk");
  EXPECT_EQ(nbd_uri({.host = "127.0.0.1", .port = 7}, "localhost", "d&k", true),
            "nbds://localhost:7/d%26k");
}

}  // namespace
}  // namespace berth::machine
