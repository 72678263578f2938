#include "machine/vm/base64.h"

#include <gtest/gtest.h>

namespace berth::machine {
namespace {

TEST(Base64, DecodesTheVectorsOfRfc4648) {
  EXPECT_EQ(MUST(decode_base64("")), "");
  EXPECT_EQ(MUST(decode_base64("Zg==")), "f");
  EXPECT_EQ(MUST(decode_base64("Zm8=")), "fo");
  EXPECT_EQ(MUST(decode_base64("Zm9v")), "foo");
  EXPECT_EQ(MUST(decode_base64("Zm9vYg==")), "foob");
  EXPECT_EQ(MUST(decode_base64("Zm9vYmFy")), "foobar");
}

TEST(Base64, RefusesWhatIsNone) {
  for (const char* text : {"Zg", "Zg=", "!!!!", "Z", "Zm9v\n"}) {
    const auto decoded = decode_base64(text);
    ASSERT_FALSE(decoded) << text;
    EXPECT_EQ(decoded.error().kind(), ErrorKind::protocol);
  }
}

}  // namespace
}  // namespace berth::machine
