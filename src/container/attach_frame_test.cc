#include "container/attach_frame.h"

#include <gmock/gmock.h>

#include "container/attach_request.h"

namespace berth::container {
namespace {

TEST(AttachFrame, ComesThroughInPieces) {
  std::vector<std::byte> sent = attach_frame(AttachFrameType::output, as_bytes("hello"));
  for (const auto& more : {attach_size_frame(24, 80), attach_exit_frame(137, 9),
                           attach_frame(AttachFrameType::input, {})})
    sent.insert(sent.end(), more.begin(), more.end());
  for (const std::size_t piece : {std::size_t{1}, std::size_t{3}, sent.size()}) {
    AttachDecoder decoder;
    std::vector<std::pair<AttachFrameType, std::string>> got;
    for (std::size_t i = 0; i < sent.size(); i += piece) {
      decoder.append(Bytes(sent).subspan(i, std::min(piece, sent.size() - i)));
      while (const auto frame = MUST(decoder.next()))
        got.emplace_back(frame->type, as_text(frame->payload));
    }
    ASSERT_EQ(got.size(), 4U);
    EXPECT_EQ(got[0], (std::pair{AttachFrameType::output, std::string("hello")}));
    EXPECT_EQ(got[1], (std::pair{AttachFrameType::size, std::string("\x18\0\x50\0", 4)}));
    EXPECT_EQ(got[2], (std::pair{AttachFrameType::exit, std::string("\x89\x09")}));
    EXPECT_EQ(got[3], (std::pair{AttachFrameType::input, std::string()}));
  }
}

TEST(AttachFrame, WhatIsNoFrameIsRefused) {
  AttachDecoder unknown;
  unknown.append(as_bytes(std::string("\x07\0\0\0\0", 5)));
  EXPECT_EQ(unknown.next().error().kind(), ErrorKind::protocol);
  AttachDecoder longer;
  longer.append(attach_head(AttachFrameType::input, attach_payload_max + 1));
  EXPECT_EQ(longer.next().error().kind(), ErrorKind::protocol);
}

TEST(AttachRequest, IsReadWhole) {
  const auto attach = MUST(decode_attach_request(
      R"({"attach": {"input": true, "from": "start", "rows": 30, "columns": 90}})"));
  EXPECT_EQ(attach.kind, AttachRequest::Kind::attach);
  EXPECT_TRUE(attach.input && attach.from_start);
  EXPECT_EQ(attach.rows, 30);
  EXPECT_EQ(attach.columns, 90);
  const auto exec = MUST(decode_attach_request(
      R"({"exec": {"arguments": ["/bin/sh", ""], "environment": ["A=b"], "user": "web",
          "working_directory": "/srv", "terminal": true, "input": true, "rows": 1, "columns": 2}})"));
  EXPECT_EQ(exec.kind, AttachRequest::Kind::exec);
  EXPECT_THAT(exec.process.arguments, testing::ElementsAre("/bin/sh", ""));
  EXPECT_THAT(exec.process.environment, testing::ElementsAre("A=b"));
  EXPECT_EQ(exec.process.user, "web");
  EXPECT_EQ(exec.process.working_directory, "/srv");
  EXPECT_TRUE(exec.process.terminal && exec.process.input && !exec.process.is_main);
  EXPECT_EQ(exec.process.rows, 1);
  EXPECT_EQ(exec.process.columns, 2);
}

TEST(AttachRequest, ACopyHasAPath) {
  const auto out = MUST(decode_attach_request(R"({"copy_out": {"path": "/etc"}})"));
  EXPECT_EQ(out.kind, AttachRequest::Kind::copy_out);
  EXPECT_EQ(out.path, "/etc");
  EXPECT_FALSE(out.keep_owners);
  const auto in =
      MUST(decode_attach_request(R"({"copy_in": {"path": "/tmp", "keep_owners": true}})"));
  EXPECT_EQ(in.kind, AttachRequest::Kind::copy_in);
  EXPECT_TRUE(in.keep_owners);
}

TEST(AttachRequest, AMistakeIsSaid) {
  for (const char* line :
       {"", "{", "[]", "{}", R"({"attach": {}})", R"({"attach": 1})",
        R"({"attach": {"from": "then"}})", R"({"attach": {"from": "now", "rows": 70000}})",
        R"({"exec": {}})", R"({"exec": {"arguments": []}})", R"({"exec": {"arguments": [""]}})",
        R"({"exec": {"arguments": [1]}})", R"({"exec": {"arguments": ["a\u0000b"]}})",
        R"({"exec": {"arguments": ["a"], "terminal": 1}})", R"({"copy_out": {}})",
        R"({"copy_in": {"path": "up"}})", R"({"attach": {"from": "now"}, "exec": {}})"}) {
    const auto request = decode_attach_request(line);
    ASSERT_FALSE(request) << line;
    EXPECT_EQ(request.error().kind(), ErrorKind::invalid_argument) << line;
  }
  EXPECT_EQ(decode_attach_request(R"({"dance": {}})").error().kind(), ErrorKind::unsupported);
}

}  // namespace
}  // namespace berth::container
