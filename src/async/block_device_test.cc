// What is checked here: disks are told apart by what stays with them, and a volume on a block
// device (a loop device, where the test may make one) keeps the promises of file.h.
#include "async/block_device.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "async/boot_id.h"
#include "async/test_support.h"
#include "async/uring_file.h"
#include "base/aligned_buffer.h"
#include "base/units.h"

namespace berth {
namespace {

/// A sysfs with the attributes that the test gives it.
class BlockDeviceIdentityTest : public testing::Test {
 protected:
  BlockDeviceIdentityTest() {
    std::filesystem::create_directories(scratch_ / "dev/block");
    std::filesystem::create_directories(scratch_ / "devices/disk/part");
    std::filesystem::create_directory_symlink("../../devices/disk", scratch_ / "dev/block/8:0");
    std::filesystem::create_directory_symlink("../../devices/disk/part",
                                              scratch_ / "dev/block/8:1");
  }
  void set(const std::string& attribute, const std::string& value) {
    const std::filesystem::path path = scratch_ / ("devices/disk/" + attribute);
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << value;
  }
  std::string disk() { return MUST(block_device_identity(makedev(8, 0), scratch_.path())); }
  std::string partition() { return MUST(block_device_identity(makedev(8, 1), scratch_.path())); }

  ScratchDirectory scratch_;
};

TEST_F(BlockDeviceIdentityTest, IsTheBestNameThatTheDiskHas) {
  set("serial", "  S123  \n");
  EXPECT_EQ(disk(), "serial:S123");
  set("device/wwid", "naa.5000c500a1b2c3d4\n");
  EXPECT_EQ(disk(), "wwid:naa.5000c500a1b2c3d4");
  set("wwid", "eui.0025385b71b00001\n");
  EXPECT_EQ(disk(), "wwid:eui.0025385b71b00001");
  set("dm/uuid", "LVM-abcdef\n");
  EXPECT_EQ(disk(), "dm:LVM-abcdef");
}

TEST_F(BlockDeviceIdentityTest, APartitionIsAPartOfItsDisk) {
  set("wwid", "naa.1\n");
  set("part/partition", "1\n");
  set("part/start", "2048\n");
  EXPECT_EQ(partition(), "wwid:naa.1:partition1:2048");
}

TEST_F(BlockDeviceIdentityTest, ADiskWithoutANameIsKnownWhileItIsAttached) {
  set("serial", "\n");
  set("diskseq", "17\n");
  EXPECT_EQ(disk(), "attached:" + MUST(read_boot_id()) + ":17");
  set("diskseq", "18\n");
  EXPECT_EQ(disk(), "attached:" + MUST(read_boot_id()) + ":18");
}

TEST_F(BlockDeviceIdentityTest, StrangeBytesAreLeftOut) {
  set("serial", std::string("A\tB\x80") + "C");
  EXPECT_EQ(disk(), "serial:A B C");
}

/// A loop device on a file; it goes by itself with its last user.
class LoopDevice {
 public:
  static std::unique_ptr<LoopDevice> attach(const std::string& image) {
    const Fd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    const Fd backing(::open(image.c_str(), O_RDWR | O_CLOEXEC));
    for (int attempt = 0; attempt < 20 && control && backing; ++attempt) {
      const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
      if (number < 0) return nullptr;
      auto device = std::make_unique<LoopDevice>("/dev/loop" + std::to_string(number));
      loop_config configuration{};
      configuration.fd = static_cast<unsigned>(backing.get());
      configuration.info.lo_flags = LO_FLAGS_AUTOCLEAR;
      if (device->fd_ && ::ioctl(device->fd_.get(), LOOP_CONFIGURE, &configuration) == 0)
        return device;
    }
    return nullptr;
  }
  explicit LoopDevice(std::string path)
      : path_(std::move(path)), fd_(::open(path_.c_str(), O_RDWR | O_CLOEXEC)) {}
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  Fd fd_;
};

class BlockDeviceFileTest : public LoopTest {
 protected:
  void SetUp() override {
    directory_ = MUST(open_directory(*loop_, scratch_.path(), false));
    ASSERT_TRUE(MUST(directory_->open("image", {.create = true}))->truncate(16 * MiB));
    device_ = LoopDevice::attach(scratch_ / "image");
    if (device_ == nullptr) GTEST_SKIP() << "cannot make a loop device: " << std::strerror(errno);
    ASSERT_EQ(::symlink(device_->path().c_str(), (scratch_ / "data").c_str()), 0);
  }

  ScratchDirectory scratch_;
  std::unique_ptr<Directory> directory_;
  std::unique_ptr<LoopDevice> device_;
};

Task<Result<void>> write_clear_and_read(File& file, std::uint64_t step) {
  const AlignedBuffer ones(MiB);
  std::ranges::fill(ones.bytes(), std::byte{1});
  const AlignedBuffer read(MiB);
  CO_TRY(co_await file.write(MiB, ones.bytes()));
  CO_TRY(co_await file.zero(MiB + step, step));
  CO_TRY(co_await file.punch(MiB + 4 * step, 2 * step));
  EXPECT_EQ(CO_TRY(co_await file.read(MiB, read.bytes())), MiB);
  EXPECT_TRUE(is_zero(read.bytes().subspan(step, step)));
  EXPECT_TRUE(is_zero(read.bytes().subspan(4 * step, 2 * step)));
  EXPECT_EQ(static_cast<std::uint64_t>(std::ranges::count(read.bytes(), std::byte{1})),
            MiB - 3 * step);
  EXPECT_EQ(CO_TRY(co_await file.read(16 * MiB - 4096, read.bytes())), 4096U);
  EXPECT_EQ((co_await file.write(16 * MiB, ones.first(4096))).error().kind(), ErrorKind::no_space);
  CO_TRY(co_await file.sync());
  co_return Result<void>{};
}

TEST_F(BlockDeviceFileTest, IsReadWrittenAndCleared) {
  run_test(*loop_, write_clear_and_read(
                       *MUST(directory_->open("data", {.direct = true, .lock = true})), 4096));
  run_test(*loop_,
           write_clear_and_read(*MUST(directory_->open("data", {.create = true})), 64 * KiB));
}

TEST_F(BlockDeviceFileTest, IsClearedInRangesSmallerThanASector) {
  run_test(*loop_, write_clear_and_read(*MUST(directory_->open("data", {})), 100));
}

TEST_F(BlockDeviceFileTest, HasASizeThatStays) {
  const auto file = MUST(directory_->open("data", {}));
  EXPECT_EQ(file->size().value(), 16 * MiB);
  EXPECT_TRUE(file->truncate(16 * MiB).has_value());
  EXPECT_EQ(file->truncate(8 * MiB).error().kind(), ErrorKind::unsupported);
  EXPECT_EQ(file->next_data(4096).value(), 4096U);
  EXPECT_EQ(file->next_hole(4096).value(), 16 * MiB);
  EXPECT_EQ(file->next_data(17 * MiB).value(), 16 * MiB);
}

TEST_F(BlockDeviceFileTest, IsTheSameUnderAnotherNameAndAfterWrites) {
  const auto file = MUST(directory_->open("data", {}));
  const FileIdentity before = MUST(file->identity());
  EXPECT_EQ(before.size, 16 * MiB);
  EXPECT_EQ(before.inode, 0U);
  EXPECT_TRUE(before.device_id.starts_with("attached:")) << before.device_id;
  run_test(*loop_, write_clear_and_read(*file, 4096));
  ASSERT_TRUE(directory_->rename("data", "other"));
  const auto again = MUST(directory_->open("other", {.read_only = true}));
  EXPECT_EQ(MUST(again->identity()), before);
}

TEST_F(BlockDeviceFileTest, IsLockedForOneUserAlone) {
  const auto first = MUST(directory_->open("data", {.direct = true, .lock = true}));
  EXPECT_EQ(directory_->open("data", {.lock = true}).error().kind(), ErrorKind::in_use);
  EXPECT_TRUE(directory_->open("data", {.read_only = true}).has_value());
}

}  // namespace
}  // namespace berth
