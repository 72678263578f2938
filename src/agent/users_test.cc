#include "agent/users.h"

#include <gtest/gtest.h>

namespace berth::agent {
namespace {

constexpr std::string_view passwd =
    "root:x:0:0:root:/root:/bin/sh\n"
    "# a comment\n"
    "bad:x:notanumber:0::/:\n"
    "web:x:33:34:Web server:/var/www:/bin/false\n"
    "1000:x:77:78::/odd:/bin/sh\n"
    "homeless:x:50:50\n";
constexpr std::string_view group =
    "root:x:0:\n"
    "www:x:34:\n"
    "logs:x:40:other,web\n"
    "almost:x:41:webmaster\n"
    "mail:x:42:web";

User resolved(std::string_view who) { return MUST(resolve_user(who, passwd, group)); }

TEST(UsersTest, ANameBringsItsGroupsAndHome) {
  EXPECT_EQ(resolved("web"), (User{.uid = 33, .gid = 34, .groups = {40, 42}, .home = "/var/www"}));
  EXPECT_EQ(resolved("33"), resolved("web"));
  EXPECT_EQ(resolved("homeless"), (User{.uid = 50, .gid = 50, .groups = {}, .home = "/"}));
}

TEST(UsersTest, NothingIsRoot) {
  EXPECT_EQ(resolved(""), (User{.uid = 0, .gid = 0, .groups = {}, .home = "/root"}));
  EXPECT_EQ(MUST(resolve_user("", "", "")),
            (User{.uid = 0, .gid = 0, .groups = {}, .home = "/root"}));
}

TEST(UsersTest, ANamedGroupTakesThePlaceOfTheOthers) {
  EXPECT_EQ(resolved("web:logs"), (User{.uid = 33, .gid = 40, .groups = {}, .home = "/var/www"}));
  EXPECT_EQ(resolved("web:7"), (User{.uid = 33, .gid = 7, .groups = {}, .home = "/var/www"}));
  EXPECT_EQ(resolved("12:34").gid, 34U);
}

TEST(UsersTest, ANumberNeedsNoEntryAndANameOfDigitsIsAName) {
  EXPECT_EQ(resolved("4711"), (User{.uid = 4711, .gid = 0, .groups = {}, .home = "/"}));
  EXPECT_EQ(resolved("1000").uid, 77U);
}

TEST(UsersTest, WhatTheImageDoesNotKnowIsNotFound) {
  for (const char* who :
       {"nobody", "bad", "web:nothing", "-1", "4294967295", "4294967296", "web:"}) {
    const auto user = resolve_user(who, passwd, group);
    ASSERT_FALSE(user) << who;
    EXPECT_EQ(user.error().kind(), ErrorKind::not_found);
  }
  EXPECT_EQ(resolve_user("nobody", passwd, group).error().message(),
            "the image has no user 'nobody' in /etc/passwd");
}

}  // namespace
}  // namespace berth::agent
