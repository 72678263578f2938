#include "nbd/file_export.h"

#include <algorithm>
#include <cerrno>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/aligned_buffer.h"
#include "base/units.h"
#include "testing/sim_host.h"
#include "testing/sim_loop.h"

namespace berth::nbd {
namespace {

class FileExportTest : public testing::Test {
 protected:
  FileExportTest() : host_(1), loop_(host_, 1) {
    const auto directory = MUST(host_.open_directory(loop_, "volume"));
    auto file = MUST(directory->open("data", {.create = true}));
    MUST(file->truncate(MiB + 100));
    file_ = file.get();
    export_ = MUST(FileExport::create(std::move(file), {.name = "raw", .block_minimum = 4096}));
  }

  template <typename T>
  T finish(Task<T> task) {
    return loop_.run_until_complete(std::move(task));
  }
  AlignedBuffer filled(std::size_t length, int value) {
    AlignedBuffer buffer(length);
    std::ranges::fill(buffer.bytes(), static_cast<std::byte>(value));
    return buffer;
  }
  bool all_are(std::uint64_t offset, std::size_t length, int value) {
    const AlignedBuffer buffer = filled(length, 0xee);
    MUST(finish(export_->read(offset, buffer.bytes())));
    return std::ranges::all_of(
        buffer.bytes(), [value](std::byte byte) { return byte == static_cast<std::byte>(value); });
  }

  SimHost host_;
  SimLoop loop_;
  File* file_ = nullptr;
  std::shared_ptr<FileExport> export_;
};

TEST_F(FileExportTest, HasTheWholeBlocksOfItsFile) {
  EXPECT_EQ(export_->info().size, MiB);
  EXPECT_EQ(export_->info().block_minimum, 4096U);
}

TEST_F(FileExportTest, ReadsWhatItWrites) {
  MUST(finish(export_->write(8192, filled(8192, 5).bytes(), false)));
  EXPECT_TRUE(all_are(8192, 8192, 5));
  EXPECT_TRUE(all_are(0, 8192, 0));
}

TEST_F(FileExportTest, ReadsZerosWhereItsFileHasBecomeShorter) {
  MUST(finish(export_->write(0, filled(8192, 5).bytes(), true)));
  MUST(file_->truncate(4096));
  EXPECT_TRUE(all_are(0, 4096, 5));
  EXPECT_TRUE(all_are(4096, 8192, 0));
}

TEST_F(FileExportTest, DiscardsAndZeroes) {
  MUST(finish(export_->write(0, filled(65536, 5).bytes(), false)));
  MUST(finish(export_->discard(4096, 4096, true)));
  MUST(finish(export_->zero(16384, 4096, {.keep_allocated = true, .force_unit_access = true})));
  MUST(finish(export_->zero(32768, 4096, {})));
  MUST(finish(export_->flush()));
  EXPECT_TRUE(all_are(4096, 4096, 0));
  EXPECT_TRUE(all_are(16384, 4096, 0));
  EXPECT_TRUE(all_are(32768, 4096, 0));
  EXPECT_TRUE(all_are(36864, 4096, 5));
}

TEST_F(FileExportTest, ShowsItsHoles) {
  MUST(finish(export_->write(65536, filled(65536, 5).bytes(), true)));
  std::uint64_t total = 0;
  for (const auto& extent : MUST(finish(export_->block_status("base:allocation", 0, MiB, 100)))) {
    if (total < 65536) EXPECT_LE(total + extent.length, 65536U);
    EXPECT_EQ(extent.flags, total >= 65536 && total < 131072 ? 0 : status_hole | status_zero)
        << total;
    total += extent.length;
  }
  EXPECT_EQ(total, MiB);
  EXPECT_EQ(MUST(finish(export_->block_status("base:allocation", 0, MiB, 1))).size(), 1U);
  EXPECT_FALSE(finish(export_->block_status("berth:changed:a", 0, MiB, 1)));
}

TEST_F(FileExportTest, PassesOnTheErrorsOfItsFile) {
  const AlignedBuffer buffer = filled(4096, 1);
  host_.faults().add({.on = fault_on::read});
  EXPECT_EQ(finish(export_->read(0, buffer.bytes())).error().kind(), ErrorKind::io_error);
  host_.faults().add({.on = fault_on::write, .error = ENOSPC});
  EXPECT_EQ(finish(export_->write(0, buffer.bytes(), false)).error().kind(), ErrorKind::no_space);
  host_.faults().add({.on = fault_on::sync});
  EXPECT_EQ(finish(export_->write(0, buffer.bytes(), true)).error().kind(), ErrorKind::io_error);
  host_.faults().add({.on = fault_on::sync});
  EXPECT_FALSE(finish(export_->flush()));
}

}  // namespace
}  // namespace berth::nbd
