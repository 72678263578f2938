#include "container/template_record.h"

#include <gmock/gmock.h>

namespace berth::container {
namespace {

using testing::HasSubstr;

TemplateRecipe recipe() {
  return {.name = "web",
          .specification = {.name = "web",
                            .image = "sha256:0",
                            .image_name = "web:1",
                            .arguments = {"/bin/web"},
                            .hostname = "web",
                            .stop_signal = "SIGTERM"},
          .ready = "http:80/health",
          .warm = {"wget -qO- localhost", "true"},
          .timeout_s = 30,
          .pool = 7,
          .request = {{"memory", std::uint64_t{128} << 20}}};
}

TemplateRecord record() {
  return {.recipe = recipe(),
          .created_at = "2026-11-27T17:20:57Z",
          .id = SystemRandom().id(),
          .built_at = "2026-11-27T17:21:57Z",
          .stamp = {.image = "sha256:0",
                    .kernel = "6.1",
                    .agent = "0123",
                    .qemu = "QEMU 7.2",
                    .accelerator = "tcg",
                    .cpu = "EPYC"},
          .memory_bytes = 1 << 20,
          .device_bytes = 100,
          .memory_checksum = "0123456789abcdef"};
}

std::string refusal(const TemplateRecipe& wanted) {
  const auto checked = check(wanted);
  if (checked) return "nothing";
  EXPECT_EQ(checked.error().kind(), ErrorKind::invalid_argument);
  return checked.error().message();
}

TEST(TemplateRecord, ComesBackFromItsDocument) {
  const TemplateRecord made = record();
  EXPECT_EQ(MUST(decode_template_record(encode(made).dump())), made);
}

TEST(TemplateRecord, WhatDoesNotFitIsCorrupt) {
  const Json json = encode(record());
  const auto kind_with = [&json](const char* pointer, const Json& value) {
    Json changed = json;
    changed[Json::json_pointer(pointer)] = value;
    const auto decoded = decode_template_record(changed.dump());
    return decoded ? std::string("nothing") : std::string(to_string(decoded.error().kind()));
  };
  EXPECT_EQ(kind_with("/version", 2), "unsupported");
  EXPECT_EQ(kind_with("/id", "no id"), "corrupt");
  EXPECT_EQ(kind_with("/warm", "text"), "corrupt");
  EXPECT_EQ(kind_with("/ready", "udp:1"), "corrupt");
  EXPECT_EQ(kind_with("/stamp", Json::array()), "corrupt");
  EXPECT_EQ(kind_with("/stamp/more", 1), "corrupt");
  EXPECT_EQ(kind_with("/specification/memory", -1), "corrupt");
  EXPECT_EQ(decode_template_record("{").error().kind(), ErrorKind::corrupt);
}

TEST(TemplateRecord, WhatClonesWouldShareIsRefused) {
  EXPECT_EQ(refusal(recipe()), "nothing");
  TemplateRecipe wanted = recipe();
  wanted.specification.ports = {{.host_address = "0.0.0.0", .host_port = 1, .guest_port = 1}};
  EXPECT_THAT(refusal(wanted), HasSubstr("neither ports nor volumes"));
  wanted = recipe();
  wanted.specification.mounts = {{.volume = "data", .path = "/data"}};
  EXPECT_THAT(refusal(wanted), HasSubstr("neither ports nor volumes"));
  wanted = recipe();
  wanted.specification.terminal = true;
  EXPECT_THAT(refusal(wanted), HasSubstr("a terminal"));
  wanted = recipe();
  wanted.name = std::string(template_name_length_max + 1, 'x');
  EXPECT_THAT(refusal(wanted), HasSubstr("at most 32"));
  wanted = recipe();
  wanted.warm = {""};
  EXPECT_THAT(refusal(wanted), HasSubstr("warm"));
  wanted = recipe();
  wanted.pool = template_pool_max + 1;
  EXPECT_THAT(refusal(wanted), HasSubstr("pool"));
  wanted = recipe();
  wanted.timeout_s = 0;
  EXPECT_THAT(refusal(wanted), HasSubstr("timeout_s"));
}

TEST(TemplateStamp, DifferencesAreSaidInWords) {
  const TemplateStamp then = record().stamp;
  EXPECT_EQ(difference(then, then), "");
  TemplateStamp now = then;
  now.qemu = "QEMU 8.0";
  now.kernel = "6.2";
  EXPECT_EQ(difference(then, now),
            "the kernel was 6.1, and is 6.2 now; QEMU was QEMU 7.2, and is QEMU 8.0 now");
}

}  // namespace
}  // namespace berth::container
