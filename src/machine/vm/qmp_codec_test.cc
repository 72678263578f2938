#include "machine/vm/qmp_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "machine/vm/peer_lines.h"

namespace berth::machine {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(QmpCodecTest, ReadsWhatQemuSays) {
  // Of QEMU 7.2, carriage returns included.
  auto message = parse_qmp(
      R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}})"
      "\r");
  ASSERT_TRUE(message) << message.error().message();
  EXPECT_EQ(message->kind, QmpMessage::Kind::greeting);
  EXPECT_EQ(message->value["version"]["qemu"]["major"], 7);

  message = parse_qmp("{\"return\": {\"status\": \"prelaunch\"}, \"id\": 3}\r");
  ASSERT_TRUE(message) << message.error().message();
  EXPECT_EQ(message->kind, QmpMessage::Kind::result);
  EXPECT_EQ(message->id, 3U);
  EXPECT_EQ(message->value["status"], "prelaunch");

  message = parse_qmp(
      R"({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true}})");
  ASSERT_TRUE(message) << message.error().message();
  EXPECT_EQ(message->kind, QmpMessage::Kind::event);
  EXPECT_EQ(message->event, "SHUTDOWN");
  EXPECT_EQ(message->value, Json({{"guest", true}}));

  message = parse_qmp(R"({"id": 4, "error": {"class": "GenericError", "desc": "no such thing"}})");
  ASSERT_TRUE(message) << message.error().message();
  EXPECT_EQ(message->kind, QmpMessage::Kind::error);
  EXPECT_EQ(message->id, 4U);
  EXPECT_EQ(message->error_class, "GenericError");
  EXPECT_EQ(message->description, "no such thing");
}

TEST(QmpCodecTest, AnEventWithoutDataHasAnEmptyObject) {
  const auto message = parse_qmp(R"({"event": "STOP", "timestamp": {}})");
  ASSERT_TRUE(message) << message.error().message();
  EXPECT_EQ(message->value, Json::object());
}

TEST(QmpCodecTest, AnErrorMayBelongToNoCommand) {
  const auto message =
      parse_qmp(R"({"error": {"class": "GenericError", "desc": "JSON parse error"}})");
  ASSERT_TRUE(message) << message.error().message();
  EXPECT_FALSE(message->id);
}

TEST(QmpCodecTest, WhatIsNoQmpIsRefused) {
  for (const std::string& line : {
           std::string(),
           std::string("\r"),
           std::string("\xff\x00{}", 4),
           std::string("{\"return\": 1"),
           std::string("[1]"),
           std::string("null"),
           std::string("{}"),
           std::string(R"({"return": {}})"),
           std::string(R"({"return": {}, "id": "a"})"),
           std::string(R"({"return": {}, "id": -1})"),
           std::string(R"({"return": {}, "id": 1.5})"),
           std::string(R"({"QMP": 1})"),
           std::string(R"({"event": 1})"),
           std::string(R"({"event": "STOP", "data": 1})"),
           std::string(R"({"error": "no", "id": 1})"),
           std::string(R"({"error": {"class": 1, "desc": "no"}, "id": 1})"),
           std::string(R"({"error": {"class": "GenericError"}, "id": 1})"),
           R"({"id": 1, "return": )" + std::string(200, '[') + std::string(200, ']') + "}",
       }) {
    const auto message = parse_qmp(line);
    ASSERT_FALSE(message) << line;
    EXPECT_EQ(message.error().kind(), ErrorKind::protocol) << line;
  }
}

TEST(QmpCodecTest, AMessageAboutALongLineIsShort) {
  const auto message = parse_qmp("\"" + std::string(1'000'000, 'a'));
  ASSERT_FALSE(message);
  EXPECT_LT(message.error().message().size(), 1000U);
}

TEST(QmpCodecTest, ChainsOfBlockNodesMayBeLong) {
  std::string line = R"({"id": 1, "return": )";
  for (int i = 0; i < 100; ++i) line += R"({"backing-image": )";
  line += "1" + std::string(101, '}');
  EXPECT_TRUE(parse_qmp(line));
}

TEST(QmpCodecTest, CommandsAreOneLineWithAnId) {
  EXPECT_EQ(format_qmp_command(7, "cont", nullptr), "{\"execute\":\"cont\",\"id\":7}\n");
  const std::string line = format_qmp_command(8, "device_del", {{"id", "a\nb"}});
  EXPECT_EQ(line, "{\"arguments\":{\"id\":\"a\\nb\"},\"execute\":\"device_del\",\"id\":8}\n");
}

TEST(QmpCodecTest, ErrorsHaveAKindAndQemusWords) {
  const auto kind_of = [](const char* error_class) {
    return qmp_error("device_del", {.error_class = error_class, .description = "no"}).kind();
  };
  EXPECT_EQ(kind_of("GenericError"), ErrorKind::precondition);
  EXPECT_EQ(kind_of("DeviceNotFound"), ErrorKind::not_found);
  EXPECT_EQ(kind_of("CommandNotFound"), ErrorKind::unsupported);
  EXPECT_THAT(qmp_error("device_del", {.description = "it is in use"}).message(),
              HasSubstr("device_del: it is in use"));
}

TEST(LineBufferTest, GivesWholeLinesOfPieces) {
  LineBuffer lines(16);
  const auto next = [&lines] { return std::string(MUST(lines.next()).value_or("(none)")); };
  lines.append(as_bytes("ab"));
  EXPECT_EQ(next(), "(none)");
  lines.append(as_bytes("c\n\nde"));
  EXPECT_EQ(next(), "abc");
  EXPECT_EQ(next(), "");
  EXPECT_EQ(next(), "(none)");
  lines.append(as_bytes("f\n"));
  EXPECT_EQ(next(), "def");
  EXPECT_EQ(next(), "(none)");
}

TEST(LineBufferTest, ALineHasALimit) {
  LineBuffer lines(4);
  lines.append(as_bytes("abcd\nabcd"));
  EXPECT_EQ(*MUST(lines.next()), "abcd");
  EXPECT_FALSE(MUST(lines.next()));
  lines.append(as_bytes("e"));
  EXPECT_EQ(lines.next().error().kind(), ErrorKind::limit);

  LineBuffer whole(4);
  whole.append(as_bytes("abcde\n"));
  EXPECT_EQ(whole.next().error().kind(), ErrorKind::limit);
}

TEST(PrintableTest, ControlCharactersAreGone) {
  EXPECT_EQ(printable("plain \xC3\xA4 \xE2\x82\xAC"), "plain \xC3\xA4 \xE2\x82\xAC");
  EXPECT_EQ(printable("a\x1b[31mb\nc\td\x7f"), "a [31mb c d ");
  EXPECT_EQ(printable("\xC2\x9B"
                      "31m"),
            " 31m");  // a C1 control
  EXPECT_EQ(printable("a\xE2\x80\xAE"
                      "b"),
            "a b");                                            // turns the direction of writing
  EXPECT_EQ(printable("\xFF\xC0\x80\xED\xA0\x80"), "??????");  // no UTF-8
}

TEST(PrintableTest, TheLengthIsBounded) {
  EXPECT_EQ(printable("abcdef", 3), "abc…");
  EXPECT_EQ(printable("ab\xE2\x82\xAC", 4), "ab…");  // no half characters
  EXPECT_THAT(printable("abc", 3), Not(HasSubstr("…")));
}

}  // namespace
}  // namespace berth::machine
