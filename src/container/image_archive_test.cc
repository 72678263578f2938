#include "container/image_archive.h"

#include <fstream>

#include <gmock/gmock.h>

#include "machine/temporary_directory.h"

namespace berth::container {
namespace {

using testing::HasSubstr;

std::string index_of(const std::string& names) {
  std::string entries;
  for (std::size_t begin = 0; begin <= names.size();) {
    const std::size_t end = std::min(names.find(' ', begin), names.size());
    const std::string name = names.substr(begin, end - begin);
    entries +=
        (entries.empty() ? "" : ",") +
        (R"({"mediaType":"m","size":1,"digest":"sha256:)" + std::string(64, 'a') + '"') +
        (name == "-" ? "}"
                     : R"(,"annotations":{"org.opencontainers.image.ref.name":")" + name + "\"}}");
    begin = end + 1;
  }
  return R"({"schemaVersion":2,"manifests":[)" + entries + "]}";
}

TEST(ImageArchiveTest, TheOnlyImageOfALayoutNeedsNoChoice) {
  const ImageArchive archive{.images = MUST(images_of_index(index_of("example.org/app:1")))};
  const ArchivedImage image = MUST(choose_image(archive, ""));
  EXPECT_EQ(image.name, "example.org/app:1");
  EXPECT_EQ(image.selector, "");
  EXPECT_EQ(MUST(choose_image(archive, "example.org/app:1")).name, "example.org/app:1");
}

TEST(ImageArchiveTest, ABareTagIsNoName) {
  EXPECT_EQ(MUST(images_of_index(index_of("latest"))).front().name, "");
  EXPECT_EQ(MUST(images_of_index(index_of("-"))).front().name, "");
  EXPECT_EQ(MUST(images_of_index(index_of("app:1"))).front().name, "docker.io/library/app:1");
  EXPECT_EQ(MUST(images_of_index(index_of("No/Name"))).front().name, "");
}

TEST(ImageArchiveTest, OfSeveralOneIsChosenByItsLabelOrItsName) {
  const ImageArchive archive{.images = MUST(images_of_index(index_of("app:1 latest -")))};
  EXPECT_EQ(MUST(choose_image(archive, "latest")).selector, "latest");
  EXPECT_EQ(MUST(choose_image(archive, "docker.io/library/app:1")).selector, "app:1");
  EXPECT_THAT(choose_image(archive, "").error().message(),
              HasSubstr("3 images: choose one with --image: app:1, latest, one without a name"));
  EXPECT_THAT(choose_image(archive, "app:2").error().message(), HasSubstr("no image 'app:2'"));
}

TEST(ImageArchiveTest, ADockerArchiveNamesItsImages) {
  const auto images = MUST(images_of_docker_manifest(
      R"([{"RepoTags":["app:1","app:2"]},{"RepoTags":null},{"RepoTags":[7]},{}])"));
  ASSERT_EQ(images.size(), 4U);
  EXPECT_EQ(images[0].name, "docker.io/library/app:1");
  EXPECT_EQ(images[0].selector, "@0");
  EXPECT_EQ(images[1].name, "");
  EXPECT_EQ(images[3].selector, "@3");
  for (const char* text : {"", "{}", "[7]", "nonsense"})
    EXPECT_EQ(images_of_docker_manifest(text).error().kind(), ErrorKind::corrupt) << text;
}

TEST(ImageArchiveTest, WhatIsNoArchiveIsRefusedWithWhatWouldBeOne) {
  const machine::TemporaryDirectory directory;
  const std::string file = directory.path() + "/file";
  EXPECT_EQ(examine_archive(file).error().kind(), ErrorKind::not_found);
  for (const std::string text : {"", "text", "\x1f\x8bnonsense"}) {
    std::ofstream(file) << text;
    EXPECT_EQ(examine_archive(file).error().kind(), ErrorKind::invalid_argument) << text;
  }
  EXPECT_THAT(examine_archive(directory.path()).error().message(), HasSubstr("docker save"));
  EXPECT_EQ(examine_archive("/dev/null").error().kind(), ErrorKind::invalid_argument);
}

TEST(ImageArchiveTest, ALayoutIsADirectoryWithAnIndex) {
  const machine::TemporaryDirectory directory;
  std::ofstream(directory.path() + "/oci-layout") << "{}";
  EXPECT_EQ(examine_archive(directory.path()).error().kind(), ErrorKind::not_found);
  std::ofstream(directory.path() + "/index.json") << index_of("app:1");
  const ImageArchive archive = MUST(examine_archive(directory.path()));
  EXPECT_EQ(to_string(archive.kind), "oci");
  EXPECT_EQ(archive.images.size(), 1U);
  std::ofstream(directory.path() + "/index.json") << R"({"manifests":[]})";
  EXPECT_EQ(examine_archive(directory.path()).error().kind(), ErrorKind::invalid_argument);
}

}  // namespace
}  // namespace berth::container
