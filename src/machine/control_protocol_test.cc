#include "machine/control_protocol.h"

#include <string>

#include <gtest/gtest.h>

#include "machine/control_messages.h"

namespace berth::machine {
namespace {

ErrorKind kind_of_line(std::string_view line) {
  const auto request = parse_request(line);
  return request ? ErrorKind::internal : request.error().kind();
}

TEST(ControlProtocol, ReadsARequest) {
  const auto request =
      parse_request(R"({"id": 7, "method": "changes", "params": {"since": "a"}, "new": 1})");
  ASSERT_TRUE(request) << request.error().message();
  EXPECT_EQ(request->id, 7U);
  EXPECT_EQ(request->method, "changes");
  EXPECT_EQ(request->params, Json({{"since", "a"}}));
}

TEST(ControlProtocol, ARequestMayHaveNoParameters) {
  for (const char* line :
       {R"({"id": 0, "method": "hello"})", R"({"id": 0, "method": "hello", "params": null})"}) {
    const auto request = parse_request(line);
    ASSERT_TRUE(request);
    EXPECT_TRUE(request->params.is_object());
  }
}

TEST(ControlProtocol, RefusesWhatIsNoRequest) {
  for (const char* line :
       {"", "x", "[]", "7", "null", "{}", R"({"id": 1})", R"({"method": "hello"})",
        R"({"id": -1, "method": "hello"})", R"({"id": 1.5, "method": "hello"})",
        R"({"id": "1", "method": "hello"})", R"({"id": 9223372036854775808, "method": "x"})",
        R"({"id": 1, "method": 2})", R"({"id": 1, "method": ""})",
        R"({"id": 1, "method": "hello", "params": []})", R"({"id": 1, "method": "hello"} x)",
        "{\"id\": 1, \"method\": \"\xff\xfe\"}", R"({"id": 1, "method": "hello")"}) {
    EXPECT_EQ(kind_of_line(line), ErrorKind::protocol) << line;
  }
}

TEST(ControlProtocol, RefusesWhatIsNestedTooDeep) {
  const std::string deep =
      R"({"id": 1, "method": "m", "params": {"a": )" + std::string(500'000, '[') + "}}";
  EXPECT_EQ(kind_of_line(deep), ErrorKind::protocol);
  const std::string closed = R"({"id": 1, "method": "m", "params": {"a": )" + std::string(20, '[') +
                             std::string(20, ']') + "}}";
  EXPECT_EQ(kind_of_line(closed), ErrorKind::protocol);
  const std::string shallow = R"({"id": 1, "method": "m", "params": {"a": )" +
                              std::string(10, '[') + std::string(10, ']') + "}}";
  EXPECT_TRUE(parse_request(shallow));
}

TEST(ControlProtocol, RefusesALineThatIsTooLong) {
  const std::string line =
      R"({"id": 1, "method": "m", "x": ")" + std::string(control_line_max, 'a') + "\"}";
  EXPECT_EQ(kind_of_line(line), ErrorKind::protocol);
}

TEST(ControlProtocol, RepliesComeBackAsTheyWere) {
  const auto result = parse_reply(format_result(3, {{"copied", 5}}));
  ASSERT_TRUE(result);
  EXPECT_EQ(result->kind, ControlReply::Kind::result);
  EXPECT_EQ(result->id, 3U);
  EXPECT_EQ(result->result["copied"], 5);

  const auto error = parse_reply(format_error(4, Error(ErrorKind::in_use, "somebody reads it")));
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind, ControlReply::Kind::error);
  EXPECT_EQ(error->error->kind(), ErrorKind::in_use);
  EXPECT_EQ(error->error->message(), "somebody reads it");

  const auto connection_error = parse_reply(format_error({}, Error(ErrorKind::protocol, "no")));
  ASSERT_TRUE(connection_error);
  EXPECT_FALSE(connection_error->id);

  const auto progress = parse_reply(format_progress(5, {.phase = "copy", .done = 1, .total = 2}));
  ASSERT_TRUE(progress);
  EXPECT_EQ(progress->kind, ControlReply::Kind::progress);
  EXPECT_EQ(progress->progress.phase, "copy");
  EXPECT_EQ(progress->progress.total, 2U);

  const auto event = parse_reply(format_event("io_failed", "the disk is gone"));
  ASSERT_TRUE(event);
  EXPECT_EQ(event->kind, ControlReply::Kind::event);
  EXPECT_EQ(event->event, "io_failed");
}

TEST(ControlProtocol, EveryLineEndsOnceAndHoldsNoOtherNewline) {
  for (const std::string& line :
       {format_result(1, {{"text", "a\nb"}}), format_error(1, Error(ErrorKind::internal, "a\nb")),
        format_event("e", "a\nb"), format_request(1, "m", Json::object())}) {
    EXPECT_EQ(line.find('\n'), line.size() - 1) << line;
  }
}

TEST(ControlProtocol, BytesThatAreNoTextAreReplacedInReplies) {
  const auto reply = parse_reply(format_error(1, Error(ErrorKind::not_found, "no file '\xff'")));
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->error->kind(), ErrorKind::not_found);
}

TEST(ControlProtocol, AnAnswerThatFitsNoLineBecomesAnError) {
  const auto reply = parse_reply(format_result(1, {{"text", std::string(control_line_max, 'a')}}));
  ASSERT_TRUE(reply);
  ASSERT_EQ(reply->kind, ControlReply::Kind::error);
  EXPECT_EQ(reply->error->kind(), ErrorKind::limit);
}

TEST(ControlMessages, AFullPageOfChangesFitsALine) {
  disk::ChangesPage page;
  for (std::size_t i = 0; i < control_extents_max; ++i) {
    page.extents.push_back({disk::volume_size_max - i, disk::volume_size_max});
  }
  EXPECT_LT(format_result(1, encode(page)).size(), control_line_max);
}

TEST(ControlMessages, AFullPageOfAListFitsALine) {
  std::vector<disk::RefpointInfo> refpoints(control_list_entries_max + 5);
  for (auto& refpoint : refpoints) refpoint.name = std::string(disk::name_length_max, 'n');
  const Json first = encode_page("refpoints", refpoints, 0);
  EXPECT_LT(format_result(1, first).size(), control_line_max);
  EXPECT_EQ(first["refpoints"].size(), control_list_entries_max);
  EXPECT_EQ(first["complete"], false);
  const Json second = encode_page("refpoints", refpoints, first["next_offset"]);
  EXPECT_EQ(second["refpoints"].size(), 5U);
  EXPECT_EQ(second["complete"], true);
  EXPECT_EQ(encode_page("refpoints", refpoints, UINT64_MAX)["refpoints"].size(), 0U);
}

TEST(ControlMessages, ParametersOfTheWrongTypeAreNamed) {
  const auto wrong = [](const Json& params) {
    const auto changes = decode_changes(params);
    return !changes && changes.error().kind() == ErrorKind::invalid_argument;
  };
  EXPECT_TRUE(wrong(Json::object()));
  EXPECT_TRUE(wrong({{"since", 5}}));
  EXPECT_TRUE(wrong({{"since", "a"}, {"offset", -1}}));
  EXPECT_TRUE(wrong({{"since", "a"}, {"offset", 1.5}}));
  EXPECT_TRUE(wrong({{"since", "a"}, {"extents_max", 0}}));
  EXPECT_TRUE(wrong({{"since", "a"}, {"nonce", "z"}}));
  EXPECT_TRUE(wrong({{"since", std::string("a\0b", 3)}}));
  EXPECT_TRUE(wrong({{"since", std::string(5000, 'a')}}));
  EXPECT_FALSE(wrong({{"since", "a"}, {"offset", nullptr}, {"unknown", 1}}));
}

TEST(ControlMessages, ChangesAreBoundedToOnePage) {
  const auto changes = decode_changes({{"since", "a"}, {"extents_max", UINT64_MAX}});
  ASSERT_TRUE(changes);
  EXPECT_EQ(changes->extents_max, control_extents_max);
  EXPECT_EQ(changes->length, UINT64_MAX);
}

TEST(ControlMessages, NewPointsNeedAName) {
  EXPECT_FALSE(decode_checkpoint_create(Json::object()));
  EXPECT_FALSE(decode_checkpoint_create({{"name", "a@b"}}));
  EXPECT_FALSE(decode_checkpoint_create({{"name", "a"}, {"refpoint", "a/b"}}));
  EXPECT_FALSE(decode_checkpoint_create({{"name", "a"}, {"durability", "eternal"}}));
  const auto cut = decode_checkpoint_create({{"name", "a"}, {"durability", "volatile"}});
  ASSERT_TRUE(cut);
  EXPECT_EQ(cut->checkpoint, "a");
  EXPECT_EQ(cut->durability, disk::Durability::volatile_);
  EXPECT_EQ(decode_refpoint_create({{"name", "r"}})->refpoint, "r");
}

TEST(ControlMessages, ALeaseIsBounded) {
  EXPECT_TRUE(decode_cut_begin({{"checkpoint", "a"}}));
  EXPECT_FALSE(decode_cut_begin({{"checkpoint", "a"}, {"lease_ms", 0}}));
  EXPECT_FALSE(decode_cut_begin({{"checkpoint", "a"}, {"lease_ms", 3'600'000}}));
}

TEST(ControlMessages, AListenerIsEitherUnixOrTcp) {
  EXPECT_FALSE(decode_serve(Json::object()));
  EXPECT_FALSE(decode_serve({{"unix", "/a"}, {"tcp", "localhost:1"}}));
  EXPECT_FALSE(decode_serve({{"unix", "a"}}));
  EXPECT_FALSE(decode_serve({{"unix", "/" + std::string(200, 'a')}}));
  const auto serve = decode_serve({{"tcp", "localhost:1"}, {"insecure", true}, {"export", "x"}});
  ASSERT_TRUE(serve);
  EXPECT_EQ(decode_serve(encode(*serve)), *serve);
}

TEST(ControlMessages, AnExportNeedsAnAbsolutePath) {
  EXPECT_FALSE(decode_checkpoint_export({{"name", "a"}, {"to", "b"}}));
  EXPECT_FALSE(decode_checkpoint_export({{"name", "a"}, {"to", "/b/"}}));
  EXPECT_TRUE(decode_checkpoint_export({{"name", "a"}, {"to", "/b"}}));
}

TEST(ControlMessages, ACutsOutcomeHasNullForWhatWasNotMade) {
  const Json outcome =
      encode(disk::CutOutcome{.epoch = 4, .gate_closed = std::chrono::microseconds(7)});
  EXPECT_EQ(outcome["gate_closed_us"], 7);
  EXPECT_TRUE(outcome["checkpoint"].is_null());
  EXPECT_TRUE(outcome["refpoint"].is_null());
}

}  // namespace
}  // namespace berth::machine
