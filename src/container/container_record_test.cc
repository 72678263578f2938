#include "container/container_record.h"

#include <cmath>

#include <gmock/gmock.h>

namespace berth::container {
namespace {

using testing::HasSubstr;

ContainerSpecification specification() {
  return {.name = "web",
          .image = "sha256:0",
          .image_name = "docker.io/library/web:1",
          .arguments = {"/bin/web", "-v"},
          .environment = {"PATH=/bin", "EMPTY="},
          .working_directory = "/srv",
          .user = "web:www",
          .hostname = "web-1",
          .stop_signal = "SIGQUIT",
          .stop_timeout_s = 3,
          .terminal = true,
          .input = true,
          .remove = true,
          .cpus = 1.5,
          .memory = std::uint64_t{512} << 20,
          .network = ContainerSpecification::Network::none,
          .ports = {{.host_address = "127.0.0.1", .host_port = 8080, .guest_port = 80}},
          .overlay = "web-root",
          .mounts = {{.volume = "data", .path = "/var/lib/data", .read_only = true}},
          .labels = {{"a", "b"}},
          .park_after = "5m",
          .log_bytes = std::uint64_t{1} << 20};
}

TEST(ContainerRecord, ComesBackFromItsDocument) {
  const ContainerRecord record{.id = SystemRandom().id(),
                               .uid = 7,
                               .created_at = "2026-11-27T17:20:57Z",
                               .specification = specification()};
  EXPECT_EQ(MUST(decode_container_record(encode(record).dump())), record);
  EXPECT_TRUE(check(record.specification));
}

TEST(ContainerRecord, AClonesTemplateIsInItAndItHasNoVolumes) {
  ContainerRecord record{.id = SystemRandom().id(),
                         .uid = 7,
                         .created_at = "2026-11-27T17:20:57Z",
                         .specification = specification()};
  record.specification.template_name = "web";
  EXPECT_THAT(check(record.specification).error().message(), HasSubstr("cannot have volumes"));
  record.specification.overlay.clear();
  record.specification.mounts.clear();
  EXPECT_TRUE(check(record.specification));
  EXPECT_EQ(MUST(decode_container_record(encode(record).dump())), record);
  record.specification.template_name = "../web";
  EXPECT_FALSE(check(record.specification));
}

TEST(ContainerRecord, InTheHostsKernelThereAreNeitherVolumesNorClones) {
  ContainerSpecification own = specification();
  own.isolation = ContainerSpecification::Isolation::process;
  EXPECT_EQ(check(own).error().kind(), ErrorKind::unsupported);
  own.overlay.clear();
  EXPECT_EQ(check(own).error().kind(), ErrorKind::unsupported);
  own.mounts.clear();
  EXPECT_TRUE(check(own));
  EXPECT_EQ(MUST(decode_container(encode(own))), own);
  own.template_name = "web";
  EXPECT_EQ(check(own).error().kind(), ErrorKind::unsupported);
  // Of before there was a choice.
  Json older = encode(specification());
  older.erase("isolation");
  EXPECT_EQ(MUST(decode_container(older)), specification());
  older["isolation"] = "hopes";
  EXPECT_FALSE(decode_container(older));
}

TEST(ContainerRecord, StateComesBackFromItsDocument) {
  const ContainerState state{.running = false,
                             .ended = true,
                             .started_at = "2026-11-27T17:20:57Z",
                             .finished_at = "2026-11-27T17:20:58Z",
                             .exit_code = 137,
                             .exit_signal = 9,
                             .error = "why"};
  EXPECT_EQ(MUST(decode_container_state(encode(state).dump())), state);
}

TEST(ContainerRecord, WhatDoesNotFitIsCorrupt) {
  Json json = encode(ContainerRecord{.specification = specification()});
  const auto kind_with = [&json](const char* pointer, const Json& value) {
    Json changed = json;
    changed[Json::json_pointer(pointer)] = value;
    const auto decoded = decode_container_record(changed.dump());
    return decoded ? std::string("taken") : std::string(to_string(decoded.error().kind()));
  };
  EXPECT_EQ(kind_with("/format", "berth-machine"), "unsupported");
  EXPECT_EQ(kind_with("/version", 2), "unsupported");
  EXPECT_EQ(kind_with("/uid", -1), "corrupt");
  EXPECT_EQ(kind_with("/unknown", 1), "taken");  // of a later version; the specification is strict
  EXPECT_EQ(kind_with("/specification/unknown", 1), "corrupt");
  EXPECT_EQ(kind_with("/specification/cpus", "two"), "corrupt");
  EXPECT_EQ(kind_with("/specification/ports/0/guest_port", 65'536), "corrupt");
  EXPECT_EQ(kind_with("/specification/arguments/0", std::string("a\0b", 3)), "corrupt");
  EXPECT_EQ(decode_container_record("{").error().kind(), ErrorKind::corrupt);
  EXPECT_EQ(decode_container_record("[]").error().kind(), ErrorKind::corrupt);
}

struct Mistake {
  const char* name;
  void (*make)(ContainerSpecification&);
  const char* message;
};

class ContainerMistake : public testing::TestWithParam<Mistake> {};

TEST_P(ContainerMistake, IsSaid) {
  ContainerSpecification container = specification();
  GetParam().make(container);
  const auto checked = check(container);
  ASSERT_FALSE(checked);
  EXPECT_EQ(checked.error().kind(), ErrorKind::invalid_argument);
  EXPECT_THAT(checked.error().message(), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    All, ContainerMistake,
    testing::Values(
        Mistake{"name", [](auto& c) { c.name = "../up"; }, "'../up'"},
        Mistake{"long_name", [](auto& c) { c.name = std::string(49, 'x'); }, "at most 48"},
        Mistake{"no_command", [](auto& c) { c.arguments.clear(); }, "has no command"},
        Mistake{"empty_command", [](auto& c) { c.arguments = {""}; }, "has no command"},
        Mistake{"long_command",
                [](auto& c) { c.arguments.push_back(std::string(container_words_bytes_max, 'x')); },
                "too long"},
        Mistake{"variable", [](auto& c) { c.environment = {"=x"}; }, "NAME=value"},
        Mistake{"relative", [](auto& c) { c.working_directory = "srv"; }, "absolute"},
        Mistake{"hostname", [](auto& c) { c.hostname = "a b"; }, "hostname"},
        Mistake{"signal", [](auto& c) { c.stop_signal = "SIGNOPE"; }, "is no signal"},
        Mistake{"no_cpus", [](auto& c) { c.cpus = 0; }, "cpus"},
        Mistake{"not_a_number", [](auto& c) { c.cpus = std::nan(""); }, "cpus"},
        Mistake{"little_memory", [](auto& c) { c.memory = 1 << 20; }, "memory"},
        Mistake{"odd_memory", [](auto& c) { c.memory += 1; }, "memory"},
        Mistake{"address", [](auto& c) { c.ports[0].host_address = "here"; }, "an IP address"},
        Mistake{"no_port", [](auto& c) { c.ports[0].guest_port = 0; }, "from 1 to"},
        Mistake{"port_twice", [](auto& c) { c.ports.push_back(c.ports[0]); }, "twice"},
        Mistake{"root", [](auto& c) { c.mounts[0].path = "/"; }, "absolute path"},
        Mistake{"up", [](auto& c) { c.mounts[0].path = "/a/../b"; }, "absolute path"},
        Mistake{"volume_twice", [](auto& c) { c.overlay = "data"; }, "twice"},
        Mistake{"small_log", [](auto& c) { c.log_bytes = 1; }, "log_bytes"},
        Mistake{"idle_at_once", [](auto& c) { c.park_after = "0s"; }, "park_after"},
        Mistake{"idle_soon", [](auto& c) { c.park_after = "soon"; }, "park_after"}),
    [](const auto& info) { return info.param.name; });

TEST(SignalNumber, KnowsNamesAndNumbers) {
  EXPECT_EQ(MUST(signal_number("SIGTERM")), 15U);
  EXPECT_EQ(MUST(signal_number("HUP")), 1U);
  EXPECT_EQ(MUST(signal_number("9")), 9U);
  EXPECT_EQ(MUST(signal_number("SIGRTMIN+3")), 37U);
  EXPECT_EQ(MUST(signal_number("RTMIN+30")), 64U);
  for (const char* wrong : {"", "SIG", "0", "65", "RTMIN+31", "-1", "TERMX", "15x", "99999999999"})
    EXPECT_FALSE(signal_number(wrong)) << wrong;
}

}  // namespace
}  // namespace berth::container
