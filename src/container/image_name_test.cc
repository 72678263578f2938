#include "container/image_name.h"

#include <gmock/gmock.h>

namespace berth::container {
namespace {

using testing::HasSubstr;

const std::string digest = "sha256:" + std::string(64, 'a');

std::string whole(std::string_view text) {
  const auto name = parse_image_name(text);
  return name ? name->text() : name.error().message();
}

TEST(ImageNameTest, WhatIsLeftOutIsFilledIn) {
  EXPECT_EQ(whole("nginx"), "docker.io/library/nginx:latest");
  EXPECT_EQ(whole("nginx:1.27"), "docker.io/library/nginx:1.27");
  EXPECT_EQ(whole("team/app"), "docker.io/team/app:latest");
  EXPECT_EQ(whole("index.docker.io/library/nginx"), "docker.io/library/nginx:latest");
  EXPECT_EQ(whole("docker.io/nginx"), "docker.io/library/nginx:latest");
  EXPECT_EQ(whole("registry.example.org/team/app:1"), "registry.example.org/team/app:1");
  EXPECT_EQ(whole("registry.example.org/app"), "registry.example.org/app:latest");
  EXPECT_EQ(whole("localhost/app"), "localhost/app:latest");
  EXPECT_EQ(whole("127.0.0.1:5000/a/b/c"), "127.0.0.1:5000/a/b/c:latest");
  EXPECT_EQ(whole("a__b/c-d/e---f.g:V_1.2-x"), "docker.io/a__b/c-d/e---f.g:V_1.2-x");
}

TEST(ImageNameTest, ADigestCountsMoreThanATag) {
  EXPECT_EQ(whole("nginx@" + digest), "docker.io/library/nginx@" + digest);
  EXPECT_EQ(whole("nginx:1@" + digest), "docker.io/library/nginx@" + digest);
}

TEST(ImageNameTest, AWholeNameIsParsedToItself) {
  for (const char* text : {"nginx", "localhost:1/x:y", "registry.example.org/a/b"}) {
    const ImageName name = MUST(parse_image_name(text));
    EXPECT_EQ(MUST(parse_image_name(name.text())), name);
  }
}

TEST(ImageNameTest, WhatIsNoNameIsRefused) {
  for (const std::string text : {"",
                                 "/",
                                 "Nginx",
                                 "a//b",
                                 "a/",
                                 "/a",
                                 "a b",
                                 "-a",
                                 "a-",
                                 "a..b",
                                 "a___b",
                                 "a._b",
                                 "a:",
                                 "a:-x",
                                 "a:b:c",
                                 "../a",
                                 "a/../b",
                                 "registry.example.org/",
                                 ":5000/a",
                                 "registry.example.org:x/a",
                                 "registry.example.org:123456/a",
                                 "a@sha256:12",
                                 "a@md5:1",
                                 "..b.c/a",
                                 "a\n",
                                 "é"}) {
    const auto name = parse_image_name(text);
    ASSERT_FALSE(name) << text << " became " << name->text();
    EXPECT_EQ(name.error().kind(), ErrorKind::invalid_argument) << text;
  }
  EXPECT_FALSE(parse_image_name("a:" + std::string(129, 't')));
  EXPECT_FALSE(parse_image_name(std::string(256, 'a')));
  EXPECT_THAT(parse_image_name(std::string("a\0b", 3)).error().message(), HasSubstr("'a?b'"));
}

TEST(ImageNameTest, DigestsAreToldFromWhatOnlyLooksLikeThem) {
  EXPECT_TRUE(is_digest(digest));
  EXPECT_FALSE(is_digest(digest + "a"));
  EXPECT_FALSE(is_digest("sha256:" + std::string(64, 'A')));
  EXPECT_FALSE(is_digest("sha256:../" + std::string(61, 'a')));
  EXPECT_EQ(digest_digits("sha256:0123456789ab"), "0123456789ab");
  EXPECT_EQ(digest_digits("0123456789abcdef"), "0123456789abcdef");
  EXPECT_EQ(digest_digits("0123456789a"), "");
  EXPECT_EQ(digest_digits("0123456789ag"), "");
  EXPECT_EQ(digest_digits(std::string(65, 'a')), "");
}

}  // namespace
}  // namespace berth::container
