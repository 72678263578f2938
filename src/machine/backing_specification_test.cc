#include "machine/backing_specification.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace berth::machine {
namespace {

using Kind = BackingSpecification::Kind;

std::vector<std::byte> head_with(std::size_t offset, std::string_view magic) {
  std::vector<std::byte> head(image_head_size);
  std::memcpy(head.data() + offset, magic.data(), magic.size());
  return head;
}

std::string write_file(const std::vector<std::byte>& content) {
  const std::string path = testing::TempDir() + "/backing_" +
                           testing::UnitTest::GetInstance()->current_test_info()->name();
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(content.data()),
             static_cast<std::streamsize>(content.size()));
  return path;
}

TEST(BackingSpecification, WhatIsParsedComesBackAsItWasWritten) {
  for (const char* text :
       {"/a/disk.raw", "file:/a", "qcow2:/a b", "vmdk:/a", "vhdx:/a", "vdi:/a", "vpc:/a",
        "volume:base@gold-1", "nbd://host:10809/name", "nbd+unix:///name?socket=/s", "nbds://host",
        "nbds+unix:///?socket=/s"}) {
    const auto backing = parse_backing(text);
    ASSERT_TRUE(backing) << backing.error().message();
    EXPECT_EQ(to_string(*backing), text);
  }
}

TEST(BackingSpecification, RefusesWhatCouldBeSomethingElse) {
  for (const std::string& text :
       {std::string(), std::string("disk.raw"), std::string("file:disk.raw"), std::string("file:"),
        std::string("qcow2:disk"), std::string("iso:/a"), std::string("volume:base"),
        std::string("volume:base@"), std::string("volume:@a"), std::string("volume:../x@a"),
        std::string("http://host/a"), std::string("json:{}"), std::string("/a\0b", 4),
        "/" + std::string(5000, 'a')}) {
    const auto backing = parse_backing(text);
    ASSERT_FALSE(backing) << text;
    EXPECT_EQ(backing.error().kind(), ErrorKind::invalid_argument);
  }
}

TEST(BackingSpecification, RecognisesImagesByTheirBeginning) {
  EXPECT_EQ(recognise_image(head_with(0, "QFI\xfb")).name, "qcow2");
  EXPECT_EQ(recognise_image(head_with(0, "KDMV")).name, "vmdk");
  EXPECT_EQ(recognise_image(head_with(0, "# Disk DescriptorFile\n")).name, "vmdk");
  EXPECT_EQ(recognise_image(head_with(0, "vhdxfile")).name, "vhdx");
  EXPECT_EQ(recognise_image(head_with(64, "\x7f\x10\xda\xbe")).name, "vdi");
  EXPECT_EQ(recognise_image(head_with(0, "conectix")).name, "vpc");
  EXPECT_EQ(recognise_image(head_with(0, "\xeb\x63\x90")).name, "raw");
  EXPECT_EQ(recognise_image({}).name, "raw");
}

TEST(BackingSpecification, AnImageThatNamesOtherFilesMustBeVouchedFor) {
  auto head = head_with(0, "QFI\xfb");
  store_be<std::uint32_t>(head.data() + 4, 3);
  EXPECT_FALSE(recognise_image(head).names_other_files);
  store_be<std::uint64_t>(head.data() + 8, 0x1000);  // a backing file's name
  EXPECT_TRUE(recognise_image(head).names_other_files);
  const std::string path = write_file(head);
  const auto guessed = settle_format({.kind = Kind::unknown_file, .path = path});
  ASSERT_FALSE(guessed);
  EXPECT_EQ(guessed.error().kind(), ErrorKind::precondition);
  EXPECT_TRUE(settle_format(*parse_backing("qcow2:" + path)));
  EXPECT_TRUE(settle_format(*parse_backing("file:" + path)));
  std::filesystem::remove(path);
}

TEST(BackingSpecification, AnExternalDataFileIsAnotherFile) {
  auto head = head_with(0, "QFI\xfb");
  store_be<std::uint32_t>(head.data() + 4, 3);
  store_be<std::uint64_t>(head.data() + 72, 4);
  EXPECT_TRUE(recognise_image(head).names_other_files);
}

TEST(BackingSpecification, ASparseVmdkIsTakenIfItsDescriptorNamesNoParent) {
  auto head = head_with(0, "KDMV");
  store_le<std::uint64_t>(head.data() + 12, 2048);
  store_le<std::uint64_t>(head.data() + 28, 1);
  store_le<std::uint64_t>(head.data() + 56, 21);
  EXPECT_FALSE(recognise_image(head).names_other_files);
  std::memcpy(head.data() + 600, "parentFileNameHint=\"x\"", 22);
  EXPECT_TRUE(recognise_image(head).names_other_files);
  store_le<std::uint64_t>(head.data() + 28, UINT64_MAX);
  EXPECT_TRUE(recognise_image(head).names_other_files);
  EXPECT_TRUE(recognise_image(Bytes(head).first(100)).names_other_files);
}

TEST(BackingSpecification, TheFormatOfAPathIsSettled) {
  const std::string path = write_file(head_with(0, "vhdxfile"));
  const auto image = settle_format(*parse_backing(path));
  ASSERT_TRUE(image);
  EXPECT_EQ(to_string(*image), "vhdx:" + path);
  std::filesystem::remove(path);

  const std::string raw = write_file({});
  EXPECT_EQ(to_string(*settle_format(*parse_backing(raw))), "file:" + raw);
  std::filesystem::remove(raw);
  EXPECT_EQ(settle_format(*parse_backing(raw)).error().kind(), ErrorKind::not_found);
}

TEST(BackingSpecification, WhatIsNoFileAndNoBlockDeviceIsRefused) {
  const std::string pipe = std::filesystem::temp_directory_path() / fmt::format("{}", ::getpid());
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string& path : {pipe, std::string("/"), std::string("/dev/null")}) {
    const auto settled = settle_format({.kind = Kind::unknown_file, .path = path});
    ASSERT_FALSE(settled) << path;
    EXPECT_EQ(settled.error().kind(), ErrorKind::invalid_argument) << path;
  }
  std::filesystem::remove(pipe);
}

}  // namespace
}  // namespace berth::machine
