#include "agent/frame.h"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace berth::agent {
namespace {

using testing::ElementsAre;

constexpr std::uint64_t token = 0x1122334455667788;
constexpr auto token_low = static_cast<std::uint32_t>(token);

std::string text(const ByteQueue& queue) { return std::string(as_text(queue.view())); }

std::string frame(FrameType type, std::uint32_t channel, std::string_view payload) {
  ByteQueue output;
  append_frame(output, type, channel, as_bytes(payload));
  return text(output);
}

std::string hello(std::uint64_t of_token = token) {
  const auto payload = encode(Greeting{.token = of_token});
  return frame(FrameType::hello, static_cast<std::uint32_t>(of_token), as_text(payload));
}

/// "type channel payload" of each frame that is found.
std::vector<std::string> decode_all(FrameDecoder& decoder) {
  std::vector<std::string> found;
  while (const auto next = decoder.next()) {
    const std::string payload =
        next->type == FrameType::hello ? "" : std::string(as_text(next->payload));
    found.push_back(std::to_string(static_cast<int>(next->type)) + ' ' +
                    std::to_string(next->channel) + ' ' + payload);
  }
  return found;
}

const std::string greeted = "1 " + std::to_string(token_low) + " ";

TEST(FrameTest, AFrameIsWhatThePageSays) {
  EXPECT_EQ(
      frame(FrameType::data, 0x01020304, "ab"),
      std::string("\xBE\x27\x4A\xC1\x06\0\0\0\x04\x03\x02\x01\x02\0\0\0ab\x41\xD8\xB5\x3E", 22));
  EXPECT_EQ(as_text(encode(Greeting{.token = token, .version = 1, .features = 2})),
            std::string_view("\x88\x77\x66\x55\x44\x33\x22\x11\x01\0\0\0\x02\0\0\0", 16));
}

TEST(FrameTest, NothingCountsBeforeTheGreeting) {
  FrameDecoder decoder(FrameType::hello);
  decoder.append(as_bytes(frame(FrameType::request, 1, "early") + hello() +
                          frame(FrameType::request, 2, "late")));
  EXPECT_THAT(decode_all(decoder), ElementsAre(greeted, "3 2 late"));
  EXPECT_EQ(decoder.dropped(), frame(FrameType::request, 1, "early").size());
}

TEST(FrameTest, BytesMayComeOneByOne) {
  FrameDecoder decoder(FrameType::hello);
  std::vector<std::string> found;
  const std::string all = std::string(7, '\0') + "\xBE\x27junk" + hello() + std::string(3, '\0') +
                          frame(FrameType::end, 5, "") + frame(FrameType::stop, 6, "");
  for (const char& byte : all) {
    decoder.append(as_bytes({&byte, 1}));
    for (auto& one : decode_all(decoder)) found.push_back(one);
  }
  EXPECT_THAT(found, ElementsAre(greeted, "8 5 ", "9 6 "));
}

TEST(FrameTest, WhereverAnOldFrameWasCutANewHostIsHeard) {
  const std::string old = frame(FrameType::data, 4, std::string(100, 'x'));
  const std::string fresh = std::string(resynchronization_size, '\0') + hello(9);
  for (std::size_t cut = 0; cut <= old.size(); ++cut) {
    FrameDecoder decoder(FrameType::hello);
    decoder.append(as_bytes(hello() + old.substr(0, cut) + fresh));
    auto found = decode_all(decoder);
    ASSERT_GE(found.size(), 2U) << cut;
    EXPECT_EQ(found.back(), "1 9 ") << cut;
    // What was cut is never taken for whole.
    EXPECT_EQ(found.size(), cut == old.size() ? 3U : 2U) << cut;
  }
}

TEST(FrameTest, TheLongestFrameIsClosedByTheZerosToo) {
  const std::string old = frame(FrameType::data, 4, std::string(frame_payload_max, '\0'));
  for (const std::size_t cut : {std::size_t{16}, std::size_t{1000}, old.size() - 1}) {
    FrameDecoder decoder(FrameType::hello);
    decoder.append(as_bytes(hello() + old.substr(0, cut) +
                            std::string(resynchronization_size, '\0') + hello(9)));
    EXPECT_THAT(decode_all(decoder), ElementsAre(greeted, "1 9 ")) << cut;
  }
}

TEST(FrameTest, OnlyTheGreetingWithTheExpectedTokenCounts) {
  const auto welcome = [](std::uint64_t of_token) {
    return frame(FrameType::welcome, static_cast<std::uint32_t>(of_token),
                 std::string(as_text(encode(Greeting{.token = of_token}))) + "fields");
  };
  FrameDecoder decoder(FrameType::welcome);
  decoder.expect(token);
  decoder.append(as_bytes(welcome(7) + frame(FrameType::answer, 1, "old") +
                          welcome(token ^ (std::uint64_t{1} << 40)) + welcome(token)));
  const auto found = decode_all(decoder);
  ASSERT_EQ(found.size(), 1U);
  EXPECT_TRUE(found[0].ends_with("fields"));
  decoder.expect(8);
  decoder.append(as_bytes(frame(FrameType::answer, 2, "old") + welcome(8)));
  EXPECT_EQ(decode_all(decoder).size(), 1U);
}

TEST(FrameTest, WhatIsNoFrameLosesThePlaceUntilTheNextGreeting) {
  for (const std::string& broken : {
           std::string("garbage"),
           frame(FrameType::request, 1, "a").replace(0, 1, "?"),
           frame(FrameType::request, 1, "a").replace(4, 1, "\x10"),
           frame(FrameType::request, 1, "a").replace(5, 1, "\x01"),
           frame(FrameType::request, 1, "a").replace(15, 1, "\x01"),
           frame(FrameType::request, 1, "a").replace(17, 1, "?"),
       }) {
    FrameDecoder decoder(FrameType::hello);
    decoder.append(as_bytes(hello() + broken + frame(FrameType::request, 2, "b") + hello(9)));
    EXPECT_THAT(decode_all(decoder), ElementsAre(greeted, "1 9 ")) << broken;
    EXPECT_GT(decoder.dropped(), 0U);
  }
}

}  // namespace
}  // namespace berth::agent
