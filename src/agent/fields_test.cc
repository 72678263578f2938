#include "agent/fields.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace berth::agent {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

Fields decoded(const FieldWriter& writer) { return MUST(Fields::decode(writer.bytes())); }

TEST(FieldsTest, AFieldIsWhatThePageSays) {
  EXPECT_EQ(as_text(FieldWriter(Operation::signal).number(Tag::signal, 15).bytes()),
            std::string_view("\x02\0\x0B\0\x08\0\0\0\x0F\0\0\0\0\0\0\0", 16));
  EXPECT_EQ(as_text(FieldWriter().text(Tag::path, "/a").bytes()),
            std::string_view("\x10\0\x02\0\0\0/a", 8));
}

TEST(FieldsTest, WhatIsWrittenIsRead) {
  FieldWriter writer;
  writer.number(Tag::process, 7).text(Tag::argument, "a").text(Tag::argument, "");
  writer.raw(Tag::content, as_bytes(std::string_view("\0x", 2)));
  const Fields fields = decoded(writer);
  EXPECT_EQ(MUST(fields.number(Tag::process)), 7U);
  EXPECT_THAT(MUST(fields.texts(Tag::argument)), ElementsAre("a", ""));
  EXPECT_EQ(as_text(fields.raw(Tag::content)), std::string_view("\0x", 2));
  EXPECT_EQ(MUST(fields.number_or(Tag::mode, 5)), 5U);
  EXPECT_EQ(MUST(fields.text_or(Tag::user, "who")), "who");
  EXPECT_THAT(fields.raw(Tag::entropy), IsEmpty());
}

TEST(FieldsTest, WhatDoesNotFitIsRefused) {
  FieldWriter writer;
  writer.text(Tag::process, "seven").raw(Tag::user, as_bytes(std::string_view("a\0b", 3)));
  const Fields fields = decoded(writer);
  EXPECT_EQ(fields.number(Tag::process).error().kind(), ErrorKind::invalid_argument);
  EXPECT_EQ(fields.number(Tag::mode).error().kind(), ErrorKind::invalid_argument);
  EXPECT_EQ(fields.text(Tag::user).error().kind(), ErrorKind::invalid_argument);
  const auto text = std::string(as_text(writer.bytes()));
  for (std::size_t cut : {std::size_t{1}, std::size_t{5}, std::size_t{8}, text.size() - 1}) {
    EXPECT_FALSE(Fields::decode(as_bytes(text.substr(0, cut)))) << cut;
  }
}

TEST(FieldsTest, OnlyOptionalTagsMayBeUnknown) {
  EXPECT_TRUE(decoded(FieldWriter().number(static_cast<Tag>(optional_tag | 999), 1)).check_tags());
  const auto refused = decoded(FieldWriter().number(static_cast<Tag>(999), 1)).check_tags();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::unsupported);
}

TEST(FieldsTest, AnErrorTravels) {
  FieldWriter writer;
  write_error(writer, Error(ErrorKind::not_found, "there is no user 'x'"));
  const auto error = read_error(decoded(writer));
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::not_found);
  EXPECT_EQ(error->message(), "there is no user 'x'");
  EXPECT_FALSE(read_error(decoded(FieldWriter())));
}

}  // namespace
}  // namespace berth::agent
