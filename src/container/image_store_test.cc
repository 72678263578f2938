#include "container/image_store.h"

#include <filesystem>

#include <gmock/gmock.h>

#include "container/image_name.h"
#include "machine/temporary_directory.h"

namespace berth::container {
namespace {

using machine::TemporaryDirectory;
using machine::write_text;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

/// A digest with these digits first.
std::string digest(const std::string& digits) {
  return "sha256:" + digits + std::string(64 - digits.size(), '0');
}

class ImageStoreTest : public testing::Test {
 protected:
  ImageStoreTest() { MUST(store_.open()); }

  /// An image of one layer, as it is when all programs have done their work.
  static ImageRecord record(const std::string& digits, const std::string& layer) {
    return {.digest = digest(digits),
            .manifest_size = 1,
            .config_digest = digest("c" + digits),
            .layers = {{.digest = digest(layer), .diff_id = digest(layer), .size = 1}}};
  }

  static void fill(const ImageStore::Scratch& scratch, const ImageRecord& record) {
    for (const std::string& each : blobs_of(record)) write_text(scratch.blob(each), "blob");
    write_text(scratch.image() + "/rootfs.erofs", "file system");
  }

  void make(const ImageRecord& record, const std::string& name) {
    const auto scratch = MUST(store_.begin());
    fill(scratch, record);
    ASSERT_TRUE(MUST(store_.publish(scratch, record, name)));
  }

  std::vector<std::string> in(const std::string& directory) const {
    std::vector<std::string> found;
    for (const auto& entry :
         std::filesystem::directory_iterator(directory_ / ("images/" + directory)))
      found.push_back(entry.path().filename());
    std::ranges::sort(found);
    return found;
  }

  TemporaryDirectory directory_;
  ImageStore store_{directory_.path()};
};

TEST_F(ImageStoreTest, AnImageIsThereWithItsNames) {
  make(record("a", "1"), "docker.io/library/a:1");
  make(record("a", "1"), "docker.io/library/a:2");
  const auto images = MUST(store_.list());
  ASSERT_THAT(images, SizeIs(1));
  EXPECT_THAT(images[0].names, ElementsAre("docker.io/library/a:1", "docker.io/library/a:2"));
  EXPECT_EQ(MUST(store_.find("a:2")).digest, digest("a"));
  EXPECT_THAT(in(""), ElementsAre("blobs", "index.json", "oci-layout", "unpacked"));
}

TEST_F(ImageStoreTest, ANameIsOneImages) {
  make(record("a", "1"), "docker.io/library/a:1");
  make(record("b", "1"), "docker.io/library/a:1");
  EXPECT_EQ(MUST(store_.find("a:1")).digest, digest("b"));
  EXPECT_THAT(MUST(store_.find(digest("a"))).names, IsEmpty());
  const auto images = MUST(store_.list());
  ASSERT_THAT(images, SizeIs(2));
  EXPECT_EQ(images.back().digest, digest("a"));
  make(record("a", "1"), "docker.io/library/b:1");
  EXPECT_THAT(MUST(decode_index(machine::read_text(directory_ / "images/index.json"))), SizeIs(2));
}

TEST_F(ImageStoreTest, AnImageWithoutANameHasOneEntry) {
  make(record("a", "1"), "");
  make(record("a", "1"), "");
  EXPECT_THAT(MUST(store_.list()), SizeIs(1));
  EXPECT_TRUE(MUST(store_.remove(digest("a"))).deleted);
  EXPECT_THAT(MUST(store_.list()), IsEmpty());
}

TEST_F(ImageStoreTest, TheBeginningOfADigestHasToBeLongEnoughAndOneImages) {
  make(record("0123456789abcd", "1"), "");
  make(record("0123456789abce", "1"), "");
  EXPECT_EQ(MUST(store_.find("0123456789abcd")).digest, digest("0123456789abcd"));
  EXPECT_EQ(MUST(store_.find("sha256:0123456789abce")).digest, digest("0123456789abce"));
  EXPECT_EQ(store_.find("0123456789ab").error().kind(), ErrorKind::invalid_argument);
  EXPECT_EQ(store_.find("0123456789a").error().kind(), ErrorKind::not_found);
  EXPECT_EQ(store_.find("NONE").error().kind(), ErrorKind::invalid_argument);
  EXPECT_EQ(store_.find("ffffffffffff").error().kind(), ErrorKind::not_found);
}

TEST_F(ImageStoreTest, BlobsGoWithTheLastImageThatNeedsThem) {
  make(record("a", "1"), "docker.io/library/a:1");
  make(record("b", "1"), "docker.io/library/b:1");
  EXPECT_THAT(in("blobs/sha256"), SizeIs(5));
  EXPECT_TRUE(MUST(store_.remove("a:1")).deleted);
  EXPECT_THAT(in("blobs/sha256"), SizeIs(3));
  MUST(store_.remove("b:1"));
  EXPECT_THAT(in("blobs/sha256"), IsEmpty());
  EXPECT_THAT(in("unpacked"), IsEmpty());
}

TEST_F(ImageStoreTest, AnImageThatGoesWhileItIsMadeAnewIsMade) {
  make(record("a", "1"), "docker.io/library/a:1");
  const auto scratch = MUST(store_.begin());
  EXPECT_TRUE(store_.contains(digest("a")));
  MUST(store_.remove("a:1"));
  // Only its blobs are there, by links of their own.
  EXPECT_FALSE(MUST(store_.publish(scratch, record("a", "1"), "docker.io/library/a:2")));
  write_text(scratch.image() + "/rootfs.erofs", "file system");
  EXPECT_TRUE(MUST(store_.publish(scratch, record("a", "1"), "docker.io/library/a:2")));
  EXPECT_THAT(in("blobs/sha256"), SizeIs(3));
}

TEST_F(ImageStoreTest, APublicationThatFailsLeavesNothing) {
  const auto scratch = MUST(store_.begin());
  const ImageRecord made = record("a", "1");
  fill(scratch, made);
  std::filesystem::create_directory(directory_ / "images/index.json.new");  // so that it fails
  EXPECT_FALSE(store_.publish(scratch, made, "docker.io/library/a:1"));
  std::filesystem::remove(directory_ / "images/index.json.new");
  EXPECT_THAT(MUST(store_.list()), IsEmpty());
  EXPECT_THAT(in("blobs/sha256"), IsEmpty());
  EXPECT_THAT(in("unpacked"), IsEmpty());
}

TEST_F(ImageStoreTest, ARecordThatCouldNotBeReadAgainIsNotWritten) {
  const auto scratch = MUST(store_.begin());
  ImageRecord made = record("a", "1");
  fill(scratch, made);
  made.config.labels["long"] = std::string(1 << 20, 'x');
  EXPECT_EQ(store_.publish(scratch, made, "").error().kind(), ErrorKind::limit);
  EXPECT_THAT(MUST(store_.list()), IsEmpty());
}

TEST_F(ImageStoreTest, WhatADeadProcessHasLeftIsCleared) {
  make(record("a", "1"), "docker.io/library/a:1");
  std::filesystem::create_directories(directory_ / "images/.making-x/layout");
  std::filesystem::create_directories(directory_ / "images/.removing-y");
  std::filesystem::create_directories(directory_ / ("images/unpacked/" + std::string(64, 'f')));
  std::filesystem::create_directories(directory_ / "images/unpacked/something else");
  write_text(directory_ / ("images/blobs/sha256/" + std::string(64, 'f')), "blob");
  ImageStore next(directory_.path());
  MUST(next.open());
  EXPECT_THAT(in(""), ElementsAre("blobs", "index.json", "oci-layout", "unpacked"));
  EXPECT_THAT(in("blobs/sha256"), SizeIs(3));
  EXPECT_THAT(in("unpacked"), SizeIs(1));
}

TEST_F(ImageStoreTest, NoBlobIsRemovedWhileARecordCannotBeRead) {
  make(record("a", "1"), "docker.io/library/a:1");
  make(record("b", "2"), "docker.io/library/b:1");
  write_text(directory_ / ("images/unpacked/" + digest("a").substr(7) + "/image.json"), "{}");
  MUST(store_.remove("b:1"));
  EXPECT_THAT(in("blobs/sha256"), SizeIs(6));
  EXPECT_THAT(MUST(store_.list()), IsEmpty());
  MUST(store_.remove("a:1"));
  EXPECT_THAT(in("blobs/sha256"), IsEmpty());
}

TEST_F(ImageStoreTest, AnIndexThatCannotBeReadIsNamedAndNothingIsCleared) {
  make(record("a", "1"), "docker.io/library/a:1");
  write_text(directory_ / "images/index.json", "nonsense");
  ImageStore next(directory_.path());
  EXPECT_EQ(next.open().error().kind(), ErrorKind::corrupt);
  EXPECT_EQ(next.list().error().kind(), ErrorKind::corrupt);
  EXPECT_THAT(in("blobs/sha256"), SizeIs(3));
}

}  // namespace
}  // namespace berth::container
