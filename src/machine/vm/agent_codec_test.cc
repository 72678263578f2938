#include "machine/vm/agent_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "machine/vm/guest_addresses.h"

namespace berth::machine {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr std::uint64_t token = 4711;
const std::string synchronization =
    "\xff{\"arguments\":{\"id\":4711},\"execute\":\"guest-sync-delimited\"}\n";
const std::string synchronized = "\xff{\"return\": 4711}\n";

TEST(AgentExchangeTest, SynchronizesAsksAndHasAnAnswer) {
  AgentExchange exchange(token, "guest-file-open", {{"path", "/a"}});
  EXPECT_EQ(exchange.take_output(), synchronization);
  EXPECT_EQ(exchange.take_output(), "");
  EXPECT_FALSE(exchange.has_asked());
  ASSERT_TRUE(exchange.receive(as_bytes(synchronized)));
  EXPECT_EQ(exchange.take_output(),
            "{\"arguments\":{\"path\":\"/a\"},\"execute\":\"guest-file-open\"}\n");
  EXPECT_TRUE(exchange.has_asked());
  EXPECT_FALSE(exchange.answer());
  ASSERT_TRUE(exchange.receive(as_bytes("{\"return\": 1000}\n")));
  ASSERT_TRUE(exchange.answer());
  EXPECT_EQ(**exchange.answer(), 1000);
  EXPECT_EQ(exchange.take_output(), "");
}

TEST(AgentExchangeTest, BytesMayComeOneByOne) {
  AgentExchange exchange(token, "guest-ping");
  EXPECT_NE(exchange.take_output(), "");
  const std::string before = "junk{\"return\": 4711}\n\xff{\"return\": 1}\n\xff{\"ret\xff\xff{}\n";
  for (const char& byte : before + synchronized)
    ASSERT_TRUE(exchange.receive(as_bytes({&byte, 1})));
  EXPECT_EQ(exchange.take_output(), "{\"execute\":\"guest-ping\"}\n");
  for (const char& byte : std::string("{\"return\": {}}\n"))
    ASSERT_TRUE(exchange.receive(as_bytes({&byte, 1})));
  ASSERT_TRUE(exchange.answer());
  EXPECT_EQ(**exchange.answer(), Json::object());
}

TEST(AgentExchangeTest, NothingButTheTokenAfterTheDelimiterSynchronizes) {
  for (const std::string& line : {
           std::string("{\"return\": 4711}\n"),          // no delimiter
           std::string("\xff{\"return\": 4712}\n"),      // another's
           std::string("\xff{\"return\": \"4711\"}\n"),  //
           std::string("\xff{\"return\": 4711, \"a\": 1}\n"),
           "\xff" + std::string(300, ' ') + "{\"return\": 4711}\n",
           std::string("\xff{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n"),
       }) {
    AgentExchange exchange(token, "guest-ping");
    EXPECT_NE(exchange.take_output(), "");
    ASSERT_TRUE(exchange.receive(as_bytes(line)));
    EXPECT_EQ(exchange.take_output(), "") << line;
    ASSERT_TRUE(exchange.receive(as_bytes(synchronized)));
    EXPECT_NE(exchange.take_output(), "") << line;
  }
}

TEST(AgentExchangeTest, AnAnswerBeforeTheRequestIsRefused) {
  AgentExchange exchange(token, "guest-ping");
  EXPECT_NE(exchange.take_output(), "");
  const auto received = exchange.receive(as_bytes(synchronized + "{\"return\": {}}\n"));
  ASSERT_FALSE(received);
  EXPECT_EQ(received.error().kind(), ErrorKind::protocol);
}

TEST(AgentExchangeTest, BeginningAgainForgetsTheFirstToken) {
  AgentExchange exchange(token, "guest-ping");
  EXPECT_EQ(exchange.take_output(), synchronization);
  exchange.begin_again(5);
  EXPECT_NE(exchange.take_output(), "");
  // The agent has read both by now; each 0xFF is an error to it.
  ASSERT_TRUE(exchange.receive(as_bytes("{\"error\": {}}\n" + synchronized + "{\"error\": {}}\n")));
  EXPECT_EQ(exchange.take_output(), "");
  ASSERT_TRUE(exchange.receive(as_bytes("\xff{\"return\": 5}\n")));
  EXPECT_EQ(exchange.take_output(), "{\"execute\":\"guest-ping\"}\n");
  exchange.begin_again(6);  // too late
  EXPECT_EQ(exchange.take_output(), "");
}

TEST(AgentExchangeTest, AfterASilentCommandAPingIsAnswered) {
  AgentExchange exchange(token, "guest-shutdown", {{"mode", "halt"}},
                         AgentExchange::Success::silent);
  EXPECT_NE(exchange.take_output(), "");
  ASSERT_TRUE(exchange.receive(as_bytes(synchronized)));
  EXPECT_EQ(exchange.take_output(),
            "{\"arguments\":{\"mode\":\"halt\"},\"execute\":\"guest-shutdown\"}\n"
            "{\"execute\":\"guest-ping\"}\n");
}

std::vector<GuestAddress> parsed(const char* text) {
  const Json answer = MUST(parse_json(text));
  return MUST(parse_guest_addresses(answer));
}

TEST(GuestAddressesTest, OnlyGlobalAddressesAreTold) {
  const auto found = parsed(R"([
    {"name": "lo", "ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "10.9.9.9", "prefix": 8}]},
    {"name": "eth0", "hardware-address": "52:54:00:12:34:56", "statistics": {}, "ip-addresses": [
      {"ip-address-type": "ipv4", "ip-address": "192.0.2.7", "prefix": 24},
      {"ip-address-type": "ipv4", "ip-address": "127.0.0.2", "prefix": 8},
      {"ip-address-type": "ipv4", "ip-address": "169.254.1.1", "prefix": 16},
      {"ip-address-type": "ipv6", "ip-address": "fe80::1", "prefix": 64},
      {"ip-address-type": "ipv6", "ip-address": "::1", "prefix": 128},
      {"ip-address-type": "ipv6", "ip-address": "2001:DB8::0:7", "prefix": 64}]},
    {"name": "wg0", "hardware-address": "00:00:00:00:00:00", "ip-addresses": [
      {"ip-address-type": "ipv6", "ip-address": "fd00::7", "prefix": 8}]},
    {"name": "down"}])");
  EXPECT_THAT(found, ElementsAre(GuestAddress{"eth0", "52:54:00:12:34:56", "192.0.2.7", 24},
                                 GuestAddress{"eth0", "52:54:00:12:34:56", "2001:db8::7", 64},
                                 GuestAddress{"wg0", "", "fd00::7", 8}));
}

TEST(GuestAddressesTest, WhatMakesNoSenseIsLeftOut) {
  EXPECT_THAT(
      parsed(R"([1, null, [], {}, {"name": 1}, {"name": "a"}, {"name": "a", "ip-addresses": 1},
    {"name": "a", "ip-addresses": [1, {}, {"ip-address": "192.0.2.7"},
      {"ip-address-type": "ipv4", "ip-address": "192.0.2.7", "prefix": 33},
      {"ip-address-type": "ipv4", "ip-address": "192.0.2.7", "prefix": -1},
      {"ip-address-type": "ipv4", "ip-address": "192.0.2.7/24", "prefix": 24},
      {"ip-address-type": "ipv6", "ip-address": "192.0.2.7", "prefix": 24},
      {"ip-address-type": "ipv4", "ip-address": "\u001b[31m", "prefix": 24}]}])"),
      IsEmpty());
}

TEST(GuestAddressesTest, NamesAndNumbersAreBounded) {
  const Json entry{{"ip-address-type", "ipv4"}, {"ip-address", "192.0.2.7"}, {"prefix", 24U}};
  Json answer = Json::array();
  answer.push_back({{"name", std::string(1000, 'a') + "\n"},
                    {"hardware-address", "52:54:00:12:34:5\x1b"},
                    {"ip-addresses", std::vector<Json>(1000, entry)}});
  const auto found = MUST(parse_guest_addresses(answer));
  ASSERT_EQ(found.size(), guest_addresses_max);
  EXPECT_LT(found[0].interface.size(), 70U);
  EXPECT_EQ(found[0].mac, "");
}

}  // namespace
}  // namespace berth::machine
