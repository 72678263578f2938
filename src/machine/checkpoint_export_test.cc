#include "machine/checkpoint_export.h"

#include <sys/stat.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/uring_loop.h"
#include "machine/control_server.h"
#include "machine/fake_volume.h"
#include "machine/temporary_directory.h"

namespace berth::machine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::uint64_t block = FakeVolume::block_size;
constexpr std::uint64_t unit = 256 * KiB;

class CheckpointExportTest : public testing::TestWithParam<std::uint64_t> {
 protected:
  void write(std::uint64_t offset, std::uint64_t length, char value) {
    const std::vector<std::byte> data(length, static_cast<std::byte>(value));
    ASSERT_TRUE(loop_->run_until_complete(volume_.write(offset, data)));
  }
  void cut(const std::string& checkpoint, const std::string& refpoint) {
    ASSERT_TRUE(
        loop_->run_until_complete(volume_.cut({.checkpoint = checkpoint, .refpoint = refpoint})));
  }
  Result<CheckpointExportOutcome> run(CheckpointExportRequest request) {
    if (request.to.empty()) request.to = to_;
    ControlCall call({.method = "checkpoint.export"}, *loop_,
                     [this](const ControlProgress& progress) {
                       progress_.push_back(progress);
                       if (cancel_at_ && progress.done >= *cancel_at_) call_->cancel();
                     });
    call_ = &call;
    return loop_->run_until_complete(export_checkpoint(*loop_, volume_, std::move(request), call));
  }
  std::string content_of(const std::string& checkpoint) {
    const auto reader = MUST(volume_.read_checkpoint(checkpoint));
    std::string content(reader->info().size, '\0');
    MUST(loop_->run_until_complete(
        reader->read(0, {reinterpret_cast<std::byte*>(content.data()), content.size()})));
    return content;
  }
  std::uint64_t space_of(const std::string& path) {
    struct stat status{};
    CHECK(::stat(path.c_str(), &status) == 0);
    return static_cast<std::uint64_t>(status.st_blocks) * 512;
  }

  std::unique_ptr<UringLoop> loop_ = UringLoop::create().value();
  FakeVolume volume_{GetParam()};
  TemporaryDirectory directory_;
  std::string to_ = directory_ / "disk.raw";
  std::vector<ControlProgress> progress_;
  std::optional<std::uint64_t> cancel_at_;
  ControlCall* call_ = nullptr;
};

// A size that direct I/O can write, and one that it cannot.
INSTANTIATE_TEST_SUITE_P(Sizes, CheckpointExportTest, testing::Values(20 * unit, 20 * unit - 512));

TEST_P(CheckpointExportTest, WritesTheWholeCheckpointSparsely) {
  write(0, 10, 'a');
  write(5 * unit - 3 * block, 6 * block, 'b');
  write(12 * unit, 1 * unit, '\0');
  write(GetParam() - 700, 700, 'z');
  cut("c", "");
  write(0, 100, 'x');

  const auto outcome = run({.checkpoint = "c"});
  ASSERT_TRUE(outcome) << outcome.error().message();
  EXPECT_EQ(read_text(to_), content_of("c"));
  EXPECT_LE(space_of(to_), 1 * unit);
  EXPECT_TRUE(outcome->exact);
  EXPECT_THAT(directory_.names(), ElementsAre("disk.raw"));
  EXPECT_EQ(volume_.readers["c"], 0U);
}

TEST_P(CheckpointExportTest, AnEmptyCheckpointIsAHole) {
  cut("c", "");
  const auto outcome = run({.checkpoint = "c"});
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->extents, 0U);
  EXPECT_EQ(std::filesystem::file_size(to_), GetParam());
  EXPECT_EQ(space_of(to_), 0U);
}

TEST_P(CheckpointExportTest, DoesNotReplaceAFile) {
  write_text(to_, "precious");
  cut("c", "");
  const auto outcome = run({.checkpoint = "c"});
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().kind(), ErrorKind::already_exists);
  EXPECT_EQ(read_text(to_), "precious");
}

TEST_P(CheckpointExportTest, PatchesACopyOfTheDiskAtTheReferencePoint) {
  write(0, 8 * unit, 'a');
  cut("full", "r");
  ASSERT_TRUE(run({.checkpoint = "full"}));

  write(1 * unit, 3 * block, 'b');
  write(4 * unit, 1 * unit, '\0');  // must become zero in the copy
  write(15 * unit, 2 * unit, 'c');
  cut("later", "");
  write(2 * unit, 1 * unit, 'x');

  const auto outcome = run({.checkpoint = "later", .since = "r"});
  ASSERT_TRUE(outcome) << outcome.error().message();
  EXPECT_EQ(outcome->extents, 3U);
  EXPECT_EQ(outcome->bytes, 3 * block + 3 * unit);
  EXPECT_EQ(read_text(to_), content_of("later"));
  EXPECT_THAT(directory_.names(), ElementsAre("disk.raw"));
}

TEST_P(CheckpointExportTest, PatchesACopyThatHadAnotherSize) {
  cut("full", "r");
  ASSERT_TRUE(run({.checkpoint = "full"}));
  ASSERT_TRUE(loop_->run_until_complete(volume_.resize(GetParam() + 4 * unit)));
  write(GetParam() + 1 * unit, 1 * unit, 'n');
  cut("grown", "");
  ASSERT_TRUE(run({.checkpoint = "grown", .since = "r"}));
  EXPECT_EQ(read_text(to_), content_of("grown"));
}

TEST_P(CheckpointExportTest, WritesTheChangesAloneWithTheirList) {
  write(0, 8 * unit, 'a');
  cut("", "r");
  write(1 * unit, 2 * block, 'b');
  write(3 * unit, 2 * unit, 'c');
  cut("later", "");

  const auto outcome = run({.checkpoint = "later", .since = "r"});
  ASSERT_TRUE(outcome) << outcome.error().message();
  EXPECT_THAT(directory_.names(), ElementsAre("disk.raw", "disk.raw.extents.json"));
  std::string expected(GetParam(), '\0');
  const std::string whole = content_of("later");
  expected.replace(1 * unit, 2 * block, whole, 1 * unit, 2 * block);
  expected.replace(3 * unit, 2 * unit, whole, 3 * unit, 2 * unit);
  EXPECT_EQ(read_text(to_), expected);

  const auto list = parse_json(read_text(to_ + ".extents.json"));
  ASSERT_TRUE(list) << list.error().message();
  EXPECT_EQ((*list)["extents"], Json::parse("[[262144, 8192], [786432, 524288]]"));
  EXPECT_EQ((*list)["size"], GetParam());
  EXPECT_EQ((*list)["since"], "r");
  EXPECT_EQ((*list)["nonce"], volume_.refpoints()[0].nonce.to_string());
  EXPECT_EQ((*list)["exact"], true);
}

TEST_P(CheckpointExportTest, ManyExtentsAreListed) {
  cut("", "r");
  for (std::uint64_t i = 0; i < 40; ++i) write(2 * i * block, 1, 'x');
  cut("later", "");
  const auto outcome = run({.checkpoint = "later", .since = "r"});
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->extents, 40U);
  EXPECT_EQ(parse_json(read_text(to_ + ".extents.json")).value()["extents"].size(),
            outcome->extents);
  EXPECT_EQ(read_text(to_), content_of("later"));
}

TEST_P(CheckpointExportTest, SaysWhereTheAnswerIsNotExact) {
  cut("", "r");
  cut("later", "");
  volume_.changes_are_exact = false;
  const auto outcome = run({.checkpoint = "later", .since = "r"});
  ASSERT_TRUE(outcome);
  EXPECT_FALSE(outcome->exact);
}

TEST_P(CheckpointExportTest, AReferencePointThatCannotBeVouchedForNeedsAFullBackup) {
  cut("later", "r");
  const auto unknown = run({.checkpoint = "later", .since = "other"});
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().kind(), ErrorKind::full_backup_required);
  const auto other_nonce = run({.checkpoint = "later", .since = "r", .nonce = Id128{}});
  ASSERT_FALSE(other_nonce);
  EXPECT_EQ(other_nonce.error().kind(), ErrorKind::full_backup_required);
  EXPECT_THAT(directory_.names(), IsEmpty());
}

TEST_P(CheckpointExportTest, AFailedReadLeavesNothingBehind) {
  write(0, 8 * unit, 'a');
  cut("c", "");
  volume_.read_error = Error(ErrorKind::io_error, "the disk is gone");
  const auto outcome = run({.checkpoint = "c"});
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().kind(), ErrorKind::io_error);
  EXPECT_THAT(directory_.names(), IsEmpty());
  EXPECT_EQ(volume_.readers["c"], 0U);
}

TEST_P(CheckpointExportTest, ACancelledExportLeavesNothingBehind) {
  write(0, 18 * unit, 'a');
  cut("c", "");
  cancel_at_ = 1;
  const auto outcome = run({.checkpoint = "c"});
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().kind(), ErrorKind::cancelled);
  EXPECT_THAT(directory_.names(), IsEmpty());
}

TEST_P(CheckpointExportTest, APatchThatFailedCanBeRepeated) {
  write(0, 8 * unit, 'a');
  cut("full", "r");
  ASSERT_TRUE(run({.checkpoint = "full"}));
  write(0, 8 * unit, 'b');
  cut("later", "");
  volume_.read_error = Error(ErrorKind::io_error, "the disk is gone");
  const auto failed = run({.checkpoint = "later", .since = "r"});
  ASSERT_FALSE(failed);
  EXPECT_THAT(failed.error().message(), HasSubstr("repeat"));
  volume_.read_error.reset();
  ASSERT_TRUE(run({.checkpoint = "later", .since = "r"}));
  EXPECT_EQ(read_text(to_), content_of("later"));
}

TEST_P(CheckpointExportTest, WhatAnEarlierProcessLeftIsUsedAgain) {
  write_text(to_ + ".partial", std::string(30 * unit, 'x'));
  write(0, 10, 'a');
  cut("c", "");
  ASSERT_TRUE(run({.checkpoint = "c"}));
  EXPECT_EQ(read_text(to_), content_of("c"));
  EXPECT_THAT(directory_.names(), ElementsAre("disk.raw"));
}

TEST_P(CheckpointExportTest, ProgressEndsAtItsTotal) {
  write(2 * unit, 10 * unit, 'a');
  cut("c", "");
  ASSERT_TRUE(run({.checkpoint = "c"}));
  ASSERT_FALSE(progress_.empty());
  for (const auto& progress : progress_) {
    EXPECT_LE(progress.done, progress.total);
    EXPECT_EQ(progress.total, GetParam());
  }
}

TEST_P(CheckpointExportTest, ADirectoryThatIsNotThereIsNotFound) {
  cut("c", "");
  const auto outcome = run({.checkpoint = "c", .to = directory_ / "none/disk"});
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().kind(), ErrorKind::not_found);
}

}  // namespace
}  // namespace berth::machine
