#include "container/image_record.h"

#include <gmock/gmock.h>

namespace berth::container {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string digest(char digit) { return "sha256:" + std::string(64, digit); }

Json manifest() {
  return {{"schemaVersion", 2},
          {"config",
           {{"mediaType", "application/vnd.oci.image.config.v1+json"},
            {"digest", digest('c')},
            {"size", 10}}},
          {"layers",
           {{{"mediaType", "application/vnd.oci.image.layer.v1.tar+gzip"},
             {"digest", digest('1')},
             {"size", 20}}}}};
}

Json config() {
  return {{"architecture", "arm64"},
          {"variant", "v8"},
          {"os", "linux"},
          {"created", "2024-05-06T07:08:09Z"},
          {"rootfs", {{"type", "layers"}, {"diff_ids", {digest('2')}}}},
          {"config",
           {{"Entrypoint", {"/entry"}},
            {"Cmd", nullptr},
            {"Env", {"A=b"}},
            {"WorkingDir", "/srv"},
            {"User", "7:8"},
            {"ExposedPorts", {{"80/tcp", Json::object()}}},
            {"Volumes", {{"/data", Json::object()}}},
            {"StopSignal", "SIGQUIT"},
            {"Labels", {{"a", "b"}}}}}};
}

ImageRecord record() {
  ImageRecord record{
      .digest = digest('d'), .config_digest = digest('c'), .layers = {{.digest = digest('1')}}};
  MUST(decode_config(config().dump(), record));
  return record;
}

Error refused_config(const Json& document) {
  ImageRecord record{.layers = {{.digest = digest('1')}}};
  auto decoded = decode_config(document.dump(), record);
  return decoded ? Error(ErrorKind::internal, "taken") : std::move(decoded).error();
}

TEST(ImageRecordTest, AManifestNamesItsConfigAndItsLayers) {
  const ImageManifest decoded = MUST(decode_manifest(manifest().dump()));
  EXPECT_EQ(decoded.config.digest, digest('c'));
  ASSERT_EQ(decoded.layers.size(), 1U);
  EXPECT_EQ(decoded.layers[0].size, 20U);
}

TEST(ImageRecordTest, WhatARunNeedsIsTakenFromTheConfig) {
  const ImageRecord decoded = record();
  EXPECT_EQ(decoded.architecture, "arm64");
  EXPECT_EQ(decoded.layers[0].diff_id, digest('2'));
  EXPECT_THAT(decoded.config.entrypoint, ElementsAre("/entry"));
  EXPECT_TRUE(decoded.config.command.empty());
  EXPECT_THAT(decoded.config.exposed_ports, ElementsAre("80/tcp"));
  EXPECT_THAT(decoded.config.volumes, ElementsAre("/data"));
  EXPECT_EQ(decoded.config.user, "7:8");
  EXPECT_EQ(decoded.config.labels.at("a"), "b");
}

TEST(ImageRecordTest, AnImageWithoutAnythingToRunIsAnImage) {
  Json document = config();
  document.erase("config");
  ImageRecord decoded{.layers = {{.digest = digest('1')}}};
  MUST(decode_config(document.dump(), decoded));
  EXPECT_EQ(decoded.config, RunConfig{});
}

TEST(ImageRecordTest, ARecordIsReadAsItWasWritten) {
  const ImageRecord written = record();
  EXPECT_EQ(MUST(decode_image_record(encode(written).dump())), written);
  EXPECT_THAT(blobs_of(written), ElementsAre(digest('d'), digest('c'), digest('1')));
  Json later = encode(written);
  later["version"] = 2;
  EXPECT_EQ(decode_image_record(later.dump()).error().kind(), ErrorKind::unsupported);
}

TEST(ImageRecordTest, AManifestThatIsNoneIsRefused) {
  Json document = manifest();
  document.erase("config");
  EXPECT_THAT(decode_manifest(document.dump()).error().message(), HasSubstr("names no config"));
  document = manifest();
  document["config"]["mediaType"] = "application/vnd.example";
  EXPECT_EQ(decode_manifest(document.dump()).error().kind(), ErrorKind::unsupported);
  document = manifest();
  document["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
  EXPECT_THAT(decode_manifest(document.dump()).error().message(), HasSubstr("it is encrypted"));
  document = manifest();
  document["layers"][0]["digest"] = "sha256:../../etc/passwd";
  EXPECT_EQ(decode_manifest(document.dump()).error().kind(), ErrorKind::unsupported);
  for (const char* text : {"", "7", "[]", "{}", "{\"config\":7}"})
    EXPECT_EQ(decode_manifest(text).error().kind(), ErrorKind::corrupt) << text;
}

TEST(ImageRecordTest, AConfigThatDoesNotFitIsRefusedByTheMembersName) {
  const auto with = [](const char* name, Json value) {
    Json document = config();
    document["config"][name] = std::move(value);
    return refused_config(document).message();
  };
  EXPECT_THAT(with("Env", "A=b"), HasSubstr("'Env'"));
  EXPECT_THAT(with("Cmd", {7}), HasSubstr("'Cmd'"));
  EXPECT_THAT(with("Entrypoint", {std::string("a\0b", 3)}), HasSubstr("'Entrypoint'"));
  EXPECT_THAT(with("Labels", {{"a", 1}}), HasSubstr("'Labels'"));
  EXPECT_THAT(with("ExposedPorts", Json::array()), HasSubstr("'ExposedPorts'"));
  Json document = config();
  document["rootfs"]["diff_ids"].push_back(digest('3'));
  EXPECT_THAT(refused_config(document).message(), HasSubstr("2 digests of layers"));
}

TEST(ImageRecordTest, AnIndexIsReadAsItWasWritten) {
  const std::vector<Descriptor> entries = {
      {.media_type = "m", .digest = digest('a'), .size = 1, .name = "docker.io/library/a:1"},
      {.media_type = "m", .digest = digest('b'), .size = 2}};
  EXPECT_EQ(MUST(decode_index(encode_index(entries))), entries);
}

TEST(ImageRecordTest, ThePlatformsOfAListAreNamedOnce) {
  const Json list = {
      {"manifests",
       {{{"platform", {{"os", "linux"}, {"architecture", "arm"}, {"variant", "v7"}}}},
        {{"platform", {{"os", "linux"}, {"architecture", "s390x"}}}},
        {{"platform", {{"os", "linux"}, {"architecture", "s390x"}}}},
        {{"platform", {{"os", "unknown"}, {"architecture", "unknown"}}}},
        7}}};
  EXPECT_EQ(MUST(platforms_of(list.dump())), "linux/arm/v7, linux/s390x");
  EXPECT_EQ(MUST(platforms_of(R"({"manifests":[]})")), "none");
}

}  // namespace
}  // namespace berth::container
