#include "container/ready_probe.h"

#include <gtest/gtest.h>

namespace berth::container {
namespace {

using Kind = ReadyProbe::Kind;

TEST(ReadyProbeTest, EachKindIsRead) {
  EXPECT_EQ(*parse_ready_probe(""), ReadyProbe{});
  EXPECT_EQ(*parse_ready_probe("tcp:5432"), (ReadyProbe{.kind = Kind::tcp, .port = 5432}));
  EXPECT_EQ(*parse_ready_probe("http:80"),
            (ReadyProbe{.kind = Kind::http, .port = 80, .path = "/"}));
  EXPECT_EQ(*parse_ready_probe("http:8080/health?deep=1"),
            (ReadyProbe{.kind = Kind::http, .port = 8080, .path = "/health?deep=1"}));
  EXPECT_EQ(*parse_ready_probe("log:ready: yes"),
            (ReadyProbe{.kind = Kind::log, .text = "ready: yes"}));
  EXPECT_EQ(*parse_ready_probe("exec:pg_isready -q"),
            (ReadyProbe{.kind = Kind::exec, .text = "pg_isready -q"}));
}

TEST(ReadyProbeTest, WhatIsNoneIsRefused) {
  for (const char* text :
       {"tcp", "tcp:", "tcp:0", "tcp:65536", "tcp:80/", "tcp:x", "http:80x", "http:80/a b",
        "http:80/\r\n", "log:", "exec:", "udp:53", ":80", "8080"}) {
    const auto probe = parse_ready_probe(text);
    ASSERT_FALSE(probe) << text;
    EXPECT_EQ(probe.error().kind(), ErrorKind::invalid_argument) << text;
  }
}

}  // namespace
}  // namespace berth::container
