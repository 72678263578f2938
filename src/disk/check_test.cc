#include "disk/check.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/checksum.h"
#include "disk/hold_layer.h"
#include "disk/journal.h"
#include "disk/map_file.h"
#include "disk/test_support.h"

namespace berth::disk {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::Field;
using testing::HasSubstr;

constexpr std::uint32_t block_size = 4 * KiB;
constexpr std::uint64_t block_count = 4096;
constexpr std::uint64_t size = block_count * block_size;  // five map pages

auto finding(Severity severity, const std::string& where, const std::string& what) {
  return Contains(AllOf(Field(&CheckFinding::severity, severity),
                        Field(&CheckFinding::where, HasSubstr(where)),
                        Field(&CheckFinding::what, HasSubstr(what))));
}

/// A volume and what it should hold: one byte a block.
class CheckTest : public testing::Test {
 protected:
  using Content = std::vector<char>;

  void create(const std::string& backing = {}) {
    if (!backing.empty()) {
      machine_.open_backing = [this](const std::string& /*specification*/) {
        return open_constant(&machine_, size, 'b');
      };
      live_.assign(block_count, 'b');
    }
    MUST(machine_.create({.size = size, .block_size = block_size, .backing = backing}));
    MUST(machine_.open());
  }
  void write(BlockIndex block, std::uint64_t count, char byte) {
    MUST(machine_.write(block * block_size, count * block_size, byte));
    std::fill_n(live_.begin() + static_cast<std::ptrdiff_t>(block), count, byte);
  }
  void zero(BlockIndex block, std::uint64_t count) {
    MUST(machine_.run(machine_.volume->zero(block * block_size, count * block_size, false)));
    std::fill_n(live_.begin() + static_cast<std::ptrdiff_t>(block), count, '\0');
  }
  void checkpoint(const std::string& name) {
    MUST(machine_.checkpoint(name));
    checkpoints_[name] = live_;
  }
  void refpoint(const std::string& name) {
    MUST(machine_.refpoint(name));
    refpoints_[name] = live_;
  }
  /// A damage of the files at rest, and what the check says and does about it.
  CheckReport check(bool repair = false) {
    auto report = machine_.check(repair);
    EXPECT_TRUE(report.has_value()) << report.error().message();
    return report ? *report : CheckReport{};
  }
  CheckReport repair() { return check(true); }

  /// What a repair must leave: nothing more to find, and a volume that opens.
  void expect_sound_after_repair() {
    const CheckReport report = check();
    EXPECT_TRUE(report.sound()) << describe(report);
    const auto opened = machine_.open();
    ASSERT_TRUE(opened.has_value()) << opened.error().message();
  }
  static std::string at(const std::string& bytes, BlockIndex block) {
    return bytes.substr(block * block_size, block_size);
  }
  void expect_content(const std::string& bytes, const Content& content, const std::string& what) {
    for (BlockIndex block = 0; block < block_count; ++block) {
      const std::string found = at(bytes, block);
      ASSERT_TRUE(found == std::string(block_size, content[block]))
          << what << ", block " << block << " begins with " << int{found[0]} << ", not with "
          << int{content[block]};
    }
  }
  void expect_live_content() { expect_content(MUST(machine_.read(0, size)), live_, "live"); }
  void expect_checkpoint(const std::string& name) {
    const auto bytes = machine_.read_checkpoint(name, 0, size);
    ASSERT_TRUE(bytes.has_value()) << bytes.error().message();
    expect_content(*bytes, checkpoints_[name], name);
  }
  std::set<BlockIndex> changed_since(const std::string& name, bool* exact = nullptr) {
    std::set<BlockIndex> blocks;
    const auto page = machine_.changes(name);
    EXPECT_TRUE(page.has_value()) << page.error().message();
    if (!page) return blocks;
    if (exact != nullptr) *exact = page->exact;
    for (const Extent& extent : page->extents) {
      for (std::uint64_t byte = extent.offset; byte < extent.offset + extent.length;
           byte += block_size) {
        blocks.insert(byte / block_size);
      }
    }
    return blocks;
  }
  /// Invariant 1: whatever differs is reported.
  void expect_differences_reported(const std::string& name) {
    const auto changed = changed_since(name);
    for (BlockIndex block = 0; block < block_count; ++block) {
      if (live_[block] != refpoints_[name][block])
        EXPECT_TRUE(changed.contains(block)) << name << ", block " << block;
    }
  }
  std::string hold_name(LayerId id) { return "holds/" + HoldLayer::file_name(id); }
  std::uint64_t slot_offset(std::uint64_t slot) {
    return sector_size + slot * (sector_size + block_size);
  }

  VolumeMachine machine_;
  Content live_ = Content(block_count, '\0');
  std::map<std::string, Content> refpoints_;
  std::map<std::string, Content> checkpoints_;
};

// --- What is whole.

TEST_F(CheckTest, AFreshVolumeIsSound) {
  create();
  MUST(machine_.close());
  const CheckReport report = check();
  EXPECT_TRUE(report.sound());
  EXPECT_TRUE(report.findings.empty()) << describe(report);
  EXPECT_FALSE(report.volume.is_nil());
}

TEST_F(CheckTest, AVolumeInUseIsSoundAfterEachKindOfEnd) {
  create();
  write(0, 100, 'x');
  refpoint("r");
  checkpoint("c");
  write(50, 100, 'y');
  MUST(machine_.flush());
  write(2000, 7, 'z');
  machine_.die();
  CheckReport report = check();
  EXPECT_TRUE(report.sound()) << describe(report);
  EXPECT_THAT(report.findings, finding(Severity::note, "map", "live map is there"));
  MUST(machine_.open());
  expect_checkpoint("c");
  MUST(machine_.flush());
  machine_.lose_power();
  report = check();
  EXPECT_TRUE(report.sound()) << describe(report);
  EXPECT_THAT(report.findings, finding(Severity::note, "map", "before the machine stopped"));
  MUST(machine_.open());
  expect_live_content();
  expect_checkpoint("c");
  MUST(machine_.close());
  EXPECT_TRUE(check().sound());
  EXPECT_EQ(check().hold_layers, 1U);
  EXPECT_EQ(check().hold_entries, 107U);
}

TEST_F(CheckTest, AVolumeThatIsOpenElsewhereIsNotChecked) {
  create();
  const auto report = machine_.check();
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().kind(), ErrorKind::in_use);
}

TEST_F(CheckTest, ADirectoryWithoutAMapIsNoVolume) {
  const auto report = machine_.check();
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().kind(), ErrorKind::not_found);
}

TEST_F(CheckTest, AMapOfANewerProgramIsLeftAlone) {
  create();
  MUST(machine_.close());
  std::vector<std::byte> sector(sector_size);
  encode_superblock({.volume = machine_.random.id(), .block_size = block_size, .created_ms = 0},
                    sector);
  sector[16] = std::byte{99};  // the version; its checksum is made good again
  store_le<std::uint64_t>(sector.data() + 8, 0);
  store_le<std::uint64_t>(sector.data() + 8, checksum64(sector));
  machine_.write_file("map", superblock_offset, sector);
  const auto report = machine_.check(true);
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().kind(), ErrorKind::unsupported);
}

TEST_F(CheckTest, ACheckWritesNothing) {
  create();
  write(0, 100, 'x');
  checkpoint("c");
  write(0, 100, 'y');
  MUST(machine_.close());
  machine_.damage("map", superblock_offset + 20);
  machine_.damage_page(0, 0);
  machine_.damage_page(0, 1);
  machine_.damage(hold_name(1), 10);
  machine_.host.set_read_only(true);
  const CheckReport report = check();
  EXPECT_EQ(report.errors, 3U) << describe(report);
  EXPECT_EQ(report.errors_repaired, 0U);
  const auto repaired = machine_.check(true);
  ASSERT_FALSE(repaired.has_value());
  EXPECT_EQ(repaired.error().kind(), ErrorKind::read_only);
}

// --- The superblock.

TEST_F(CheckTest, ABadCopyOfTheSuperblockIsWrittenAgainFromTheOther) {
  for (const std::uint64_t offset : {superblock_offset, superblock_copy_offset}) {
    VolumeMachine machine;
    MUST(machine.create({.size = size, .block_size = block_size}));
    const auto before = machine.read_file("map", 0, 2 * sector_size);
    machine.damage("map", offset + 33);
    const auto report = MUST(machine.check(true));
    EXPECT_EQ(report.errors, 1U);
    EXPECT_TRUE(report.sound());
    EXPECT_EQ(machine.read_file("map", 0, 2 * sector_size), before);
  }
}

TEST_F(CheckTest, ASuperblockOfAnotherVolumeGivesWayToTheOneThatOwnsTheJournal) {
  create();
  MUST(machine_.close());
  const auto before = machine_.read_file("map", 0, 2 * sector_size);
  std::vector<std::byte> sector(sector_size);
  encode_superblock({.volume = machine_.random.id(), .block_size = block_size, .created_ms = 0},
                    sector);
  machine_.write_file("map", superblock_offset, sector);
  const CheckReport report = repair();
  EXPECT_TRUE(report.sound()) << describe(report);
  EXPECT_EQ(machine_.read_file("map", 0, 2 * sector_size), before);
  expect_sound_after_repair();
}

TEST_F(CheckTest, WithoutAnySuperblockThereIsNoRepair) {
  create();
  MUST(machine_.close());
  machine_.damage("map", superblock_offset + 33);
  machine_.damage("map", superblock_copy_offset + 33);
  const CheckReport report = repair();
  EXPECT_FALSE(report.sound());
  EXPECT_EQ(report.errors_repaired, 0U);
}

// --- Pages.

TEST_F(CheckTest, APageWithoutAWholeVersionIsReportedAsChangedAndKeepsItsContent) {
  create();
  write(0, 1500, 'a');
  refpoint("r1");
  write(10, 20, 'b');
  checkpoint("c");
  write(20, 20, 'c');
  refpoint("r2");
  write(1200, 1, 'd');
  MUST(machine_.close());
  machine_.damage_page(0, 0);
  machine_.damage_page(0, 1);
  EXPECT_EQ(kind_of(machine_.open()), ErrorKind::corrupt);

  CheckReport report = check();
  EXPECT_THAT(report.findings, finding(Severity::error, "page 0", "no whole version"));
  EXPECT_FALSE(report.sound());
  report = repair();
  EXPECT_TRUE(report.sound()) << describe(report);
  EXPECT_EQ(report.errors_repaired, 1U);

  expect_sound_after_repair();
  expect_live_content();
  expect_checkpoint("c");
  bool exact = true;
  const auto changed = changed_since("r2", &exact);
  EXPECT_FALSE(exact);
  EXPECT_EQ(changed.size(), words_per_page + 1);
  EXPECT_TRUE(changed.contains(1200));
  expect_differences_reported("r1");

  // The checkpoint is still held for: nothing of the page takes the fast path.
  write(500, 3, 'e');
  write(20, 3, 'e');
  expect_checkpoint("c");
  refpoint("r3");
  EXPECT_TRUE(changed_since("r3", &exact).empty());
  EXPECT_TRUE(exact);
  write(7, 1, 'f');
  EXPECT_EQ(changed_since("r3"), std::set<BlockIndex>{7});
}

TEST_F(CheckTest, OverABackingWhatIsInTheDataFileIsPresent) {
  create("image");
  write(16, 16, 'x');
  MUST(machine_.run(machine_.volume->write(100 * block_size + 512, as_bytes("part of a block"))));
  MUST(machine_.close());
  machine_.damage_page(0, 0);  // written once
  const CheckReport report = repair();
  EXPECT_TRUE(report.sound()) << describe(report);
  expect_sound_after_repair();
  const std::string bytes = MUST(machine_.read(0, size));
  EXPECT_EQ(at(bytes, 15), std::string(block_size, 'b'));
  EXPECT_EQ(at(bytes, 16), std::string(block_size, 'x'));
  EXPECT_EQ(at(bytes, 31), std::string(block_size, 'x'));
  EXPECT_EQ(at(bytes, 32), std::string(block_size, 'b'));
  EXPECT_THAT(at(bytes, 100), HasSubstr("bpart of a blockb"));
}

TEST_F(CheckTest, TheNewerSlotOfAClosedVolumeIsMissedAndItsBlocksAreReportedAsChanged) {
  create();
  write(0, 10, 'a');
  MUST(machine_.flush());
  refpoint("r");
  write(0, 5, 'b');
  MUST(machine_.close());  // the second version
  machine_.damage_page(0, 1);
  CheckReport report = check();
  EXPECT_FALSE(report.sound());
  EXPECT_THAT(report.findings, finding(Severity::error, "page 0", "the newer one"));
  report = repair();
  EXPECT_TRUE(report.sound()) << describe(report);
  expect_sound_after_repair();
  expect_live_content();
  bool exact = true;
  EXPECT_EQ(changed_since("r", &exact).size(), words_per_page);
  EXPECT_FALSE(exact);
  MUST(machine_.close());
  report = check();
  EXPECT_EQ(report.warnings, 0U) << describe(report);
}

TEST_F(CheckTest, TheOlderSlotOfAClosedVolumeIsNotNeeded) {
  create();
  write(0, 10, 'a');
  MUST(machine_.flush());
  refpoint("r");
  write(0, 5, 'b');
  MUST(machine_.close());
  machine_.damage_page(0, 0);
  const CheckReport report = repair();
  EXPECT_EQ(report.errors, 0U) << describe(report);
  EXPECT_THAT(report.findings, finding(Severity::note, "page 0", "does not count"));
  expect_sound_after_repair();
  bool exact = false;
  EXPECT_EQ(changed_since("r", &exact), (std::set<BlockIndex>{0, 1, 2, 3, 4}));
  EXPECT_TRUE(exact);
}

TEST_F(CheckTest, AVersionThatIsMissingOfNobodyKnowsWhichPageIsLeftToTheNextOpen) {
  create();
  write(0, 10, 'a');
  refpoint("r");
  write(0, 5, 'b');
  MUST(machine_.close());
  const std::vector<std::byte> zeros(page_size);
  machine_.write_file("map", page_slot_offset(0, 1), zeros);
  const CheckReport report = repair();
  EXPECT_THAT(report.findings, finding(Severity::error, "pages", "nothing tells of which"));
  EXPECT_FALSE(report.sound());
  MUST(machine_.open());
  expect_live_content();
  EXPECT_EQ(kind_of(machine_.changes("r")), ErrorKind::full_backup_required);
}

TEST_F(CheckTest, ALiveMapOfADeadKeeperMendsAPageExactly) {
  create();
  write(0, 10, 'a');
  MUST(machine_.flush());
  refpoint("r");
  write(0, 5, 'b');
  MUST(machine_.flush());
  machine_.die();
  machine_.damage_page(0, 0);
  machine_.damage_page(0, 1);
  const CheckReport report = repair();
  EXPECT_TRUE(report.sound()) << describe(report);
  MUST(machine_.open());
  EXPECT_EQ(changed_since("r"), (std::set<BlockIndex>{0, 1, 2, 3, 4}));
  MUST(machine_.reopen());
  EXPECT_EQ(changed_since("r"), (std::set<BlockIndex>{0, 1, 2, 3, 4}));
  expect_live_content();
}

TEST_F(CheckTest, AMapThatMayHaveALiveTwinIsNotRepairedWithoutIt) {
  create();
  write(0, 10, 'a');
  MUST(machine_.flush());
  machine_.die();
  machine_.damage_page(0, 0);
  const auto report =
      machine_.run(check_volume(*machine_.loop, *machine_.directory, {.repair = true}));
  ASSERT_TRUE(report.has_value());
  // Its only write may have been cut short, for all that the disk says.
  EXPECT_TRUE(report->sound()) << describe(*report);
  machine_.damage_page(0, 1);
  const auto again =
      machine_.run(check_volume(*machine_.loop, *machine_.directory, {.repair = true}));
  ASSERT_TRUE(again.has_value());
  EXPECT_FALSE(again->sound());
  EXPECT_EQ(again->errors_repaired, 0U);
}

TEST_F(CheckTest, APageDamagedAfterAPowerLossIsRepaired) {
  create();
  write(0, 10, 'a');
  refpoint("r");
  write(0, 5, 'b');
  MUST(machine_.flush());
  write(2, 1, 'c');
  MUST(machine_.flush());
  machine_.lose_power();
  machine_.damage_page(0, 0);
  machine_.damage_page(0, 1);
  const CheckReport report = repair();
  EXPECT_EQ(report.errors_repaired, 1U) << describe(report);
  expect_sound_after_repair();
  expect_live_content();
  expect_differences_reported("r");
}

TEST_F(CheckTest, PagesBeyondTheEndGo) {
  create();
  write(4000, 10, 'a');
  MUST(machine_.close());
  const auto page = machine_.read_file("map", page_slot_offset(3, 0), page_size);
  machine_.write_file("map", page_slot_offset(7, 0), page);
  CheckReport report = check();
  EXPECT_THAT(report.findings, finding(Severity::error, "map", "beyond number 4"));
  report = repair();
  EXPECT_TRUE(report.sound());
  expect_sound_after_repair();
  expect_live_content();
}

TEST_F(CheckTest, ASectorThatTheDeviceDoesNotGiveBackIsDamageLikeAnyOther) {
  create();
  write(0, 10, 'a');
  refpoint("r");
  MUST(machine_.close());
  std::uint64_t reads = 0;
  {
    // How many reads come before the pages: the fault is counted in operations.
    machine_.host.faults().add(
        {.path = "vol/map", .on = fault_on::read, .error = EIO, .skip = 1'000'000});
    EXPECT_TRUE(check().sound());
    machine_.host.faults().clear();
  }
  for (; reads < 40; ++reads) {
    machine_.host.faults().add(
        {.path = "vol/map", .on = fault_on::read, .error = EIO, .skip = reads, .times = 2});
    const auto report = machine_.check();
    machine_.host.faults().clear();
    ASSERT_TRUE(report.has_value()) << report.error().message();
    EXPECT_GE(report->errors, 1U) << "read " << reads;
    if (std::ranges::any_of(report->findings,
                            [](const auto& one) { return one.what.contains("no whole version"); }))
      return;
  }
  ADD_FAILURE() << "no read was the one of the page";
}

// --- Holds.

TEST_F(CheckTest, TheHeaderOfAHoldIsKnownWithoutIt) {
  create();
  write(0, 10, 'a');
  checkpoint("c");
  write(0, 5, 'b');
  MUST(machine_.close());
  machine_.damage(hold_name(1), 30);
  EXPECT_EQ(kind_of(machine_.open()), ErrorKind::corrupt);
  const CheckReport report = repair();
  EXPECT_EQ(report.errors_repaired, 1U) << describe(report);
  expect_sound_after_repair();
  expect_checkpoint("c");
}

TEST_F(CheckTest, ADamagedEntryCostsTheCheckpointsThatNeedItAndNoOther) {
  create();
  write(0, 10, 'a');
  checkpoint("old");
  write(0, 3, 'b');  // held in the first layer
  checkpoint("middle");
  for (BlockIndex block = 0; block < 5; ++block)
    write(block, 1, 'c');  // in the second, in this order
  checkpoint("new");
  write(0, 1, 'd');
  refpoint("r");
  MUST(machine_.close());
  machine_.damage(hold_name(2),
                  slot_offset(1) + sector_size + 9);  // block 1, which "old" has in its own layer
  CheckReport report = repair();
  EXPECT_TRUE(report.sound()) << describe(report);
  EXPECT_THAT(report.findings, finding(Severity::error, "slot 1", "'middle'"));
  expect_sound_after_repair();
  expect_checkpoint("old");
  expect_checkpoint("new");
  EXPECT_EQ(kind_of(machine_.read_checkpoint("middle", 0, block_size)), ErrorKind::precondition);
  expect_live_content();
  expect_differences_reported("r");
  MUST(machine_.close());

  machine_.damage(hold_name(2),
                  slot_offset(4) + sector_size + 9);  // block 4, which only this layer has
  report = repair();
  EXPECT_TRUE(report.sound()) << describe(report);
  expect_sound_after_repair();
  expect_checkpoint("new");
  EXPECT_EQ(kind_of(machine_.read_checkpoint("old", 0, block_size)), ErrorKind::precondition);
}

TEST_F(CheckTest, AnEntryNearTheEndThatVanishedIsMissedByWhatHasChangedSince) {
  create();
  write(0, 10, 'a');
  checkpoint("c");
  write(0, 5, 'b');
  MUST(machine_.close());
  machine_.damage(hold_name(1), slot_offset(3) + 40);  // looks like a write that was cut short
  CheckReport report = check();
  EXPECT_THAT(report.findings, finding(Severity::error, "'c'", "1 blocks have changed since"));
  report = repair();
  EXPECT_TRUE(report.sound()) << describe(report);
  expect_sound_after_repair();
  EXPECT_EQ(kind_of(machine_.read_checkpoint("c", 0, block_size)), ErrorKind::precondition);
  expect_live_content();
}

TEST_F(CheckTest, DamageFarFromTheEndCostsWhateverNeedsTheLayer) {
  create();
  write(0, 1000, 'a');
  checkpoint("old");
  for (BlockIndex block = 0; block < 700; ++block) write(block, 1, 'b');
  checkpoint("new");
  write(0, 2, 'c');
  MUST(machine_.close());
  machine_.damage(hold_name(1), slot_offset(100) + 40);
  EXPECT_EQ(kind_of(machine_.open()), ErrorKind::corrupt);
  const CheckReport report = repair();
  EXPECT_TRUE(report.sound()) << describe(report);
  expect_sound_after_repair();
  expect_checkpoint("new");
  EXPECT_EQ(machine_.volume->checkpoints().front().lost, true);
  expect_live_content();
}

TEST_F(CheckTest, BytesThatTheDataFileStillHasAreWrittenAgain) {
  create();
  write(0, 1000, 'a');
  checkpoint("c");
  for (BlockIndex block = 0; block < 700; ++block) write(block, 1, block == 50 ? 'a' : 'b');
  MUST(machine_.close());
  machine_.damage(hold_name(1), slot_offset(50) + sector_size + 40);
  const CheckReport report = repair();
  EXPECT_EQ(report.errors_repaired, 1U) << describe(report);
  EXPECT_THAT(report.findings, finding(Severity::error, "slot 50", "data file still has them"));
  expect_sound_after_repair();
  expect_checkpoint("c");
}

TEST_F(CheckTest, AMissingHoldCostsItsCheckpoints) {
  create();
  write(0, 10, 'a');
  checkpoint("old");
  write(0, 3, 'b');
  checkpoint("new");
  write(5, 3, 'c');
  MUST(machine_.close());
  const auto holds = MUST(machine_.directory->open_directory("holds", false));
  MUST(holds->remove(HoldLayer::file_name(1)));
  EXPECT_FALSE(machine_.open().has_value());
  const CheckReport report = repair();
  EXPECT_TRUE(report.sound()) << describe(report);
  expect_sound_after_repair();
  expect_checkpoint("new");
  expect_live_content();
}

TEST_F(CheckTest, AFileThatNoCheckpointNeedsIsNoted) {
  create();
  MUST(machine_.close());
  const auto holds = MUST(machine_.directory->open_directory("holds", true));
  MUST(holds->open(HoldLayer::file_name(77), {.create = true}));
  const CheckReport report = check();
  EXPECT_TRUE(report.sound());
  EXPECT_THAT(report.findings, finding(Severity::note, HoldLayer::file_name(77), "removes it"));
}

// --- The journal.

class CheckJournalTest : public CheckTest {
 protected:
  /// Where each record of an area begins.
  std::vector<std::uint64_t> record_offsets(std::uint64_t area) {
    std::vector<std::uint64_t> offsets;
    const Id128 volume = check().volume;
    for (std::uint64_t offset = area;;) {
      const auto head = peek_record(volume, machine_.read_file("map", offset, sector_size));
      if (!head) return offsets;
      offsets.push_back(offset);
      offset += round_up(head->length, sector_size);
    }
  }
};

TEST_F(CheckJournalTest, WithoutAFirstRecordAndASecondAreaThereIsNoRepair) {
  create();
  MUST(machine_.close());
  machine_.damage("map", journal_offset_a + 100);
  const CheckReport report = repair();
  EXPECT_FALSE(report.sound());
  EXPECT_THAT(report.findings, finding(Severity::error, "journal", "neither area"));
}

TEST_F(CheckJournalTest, AMissingRecordCostsWhatIsOlderAndNothingThatIsNewer) {
  create();  // 1: open
  write(0, 10, 'a');
  checkpoint("old");    // 2
  refpoint("old-ref");  // 3
  write(0, 3, 'b');
  refpoint("missing");  // 4
  write(3, 3, 'c');
  checkpoint("new");    // 5: its layer, 6: the cut
  refpoint("new-ref");  // 7
  write(7, 3, 'd');
  MUST(machine_.close());  // 8
  const auto offsets = record_offsets(journal_offset_a);
  ASSERT_EQ(offsets.size(), 9U);
  machine_.damage("map", offsets[4] + 70);
  EXPECT_EQ(kind_of(machine_.open()), ErrorKind::corrupt);

  CheckReport report = check();
  EXPECT_THAT(report.findings, finding(Severity::error, "journal", "record 4 cannot be read"));
  EXPECT_THAT(report.findings, finding(Severity::error, "'old'", "given up"));
  report = repair();
  EXPECT_TRUE(report.sound()) << describe(report);
  expect_sound_after_repair();
  expect_live_content();
  expect_checkpoint("new");
  EXPECT_EQ(kind_of(machine_.read_checkpoint("old", 0, block_size)), ErrorKind::precondition);
  EXPECT_EQ(kind_of(machine_.changes("missing")), ErrorKind::full_backup_required);
  expect_differences_reported("new-ref");
  expect_differences_reported(
      "old-ref");  // one record of an open volume: it says nothing of another data file
  write(8, 1, 'e');
  expect_checkpoint("new");
  MUST(machine_.reopen());
  expect_live_content();
}

TEST_F(CheckJournalTest, AMissingOpeningMayHaveFoundAnotherDataFile) {
  create();
  write(0, 10, 'a');
  refpoint("r");
  MUST(machine_.close());
  MUST(machine_.open());
  refpoint("later");
  MUST(machine_.close());
  const auto offsets = record_offsets(journal_offset_a);
  ASSERT_EQ(offsets.size(), 7U);  // the state; open, cut, close; open, cut, close
  machine_.damage("map", offsets[4] + 70);
  const CheckReport report = repair();
  EXPECT_TRUE(report.sound()) << describe(report);
  EXPECT_THAT(report.findings, finding(Severity::error, "'r'", "full backup"));
  expect_sound_after_repair();
  EXPECT_EQ(kind_of(machine_.changes("r")), ErrorKind::full_backup_required);
  EXPECT_TRUE(machine_.changes("later").has_value());
  expect_live_content();
}

/// Journals of two generations, made by filling the first.
class CheckGenerationsTest : public CheckJournalTest {
 protected:
  void SetUp() override {
    create();
    write(0, 10, 'a');
    checkpoint("c");
    refpoint("first");
    write(0, 5, 'b');
    MUST(machine_.close());
    Superblock superblock = MUST(decode_superblock(machine_.read_file("map", 0, sector_size)));
    volume_ = superblock.volume;
    // The next generation begins with the state that this one ends with, as a compaction does it.
    const auto offsets = record_offsets(journal_offset_a);
    VolumeState state;
    for (std::size_t i = 0; i < offsets.size(); ++i) {
      auto record =
          MUST(decode_record(volume_, machine_.read_file("map", offsets[i], sector_size)));
      if (i == 0) {
        state = std::get<VolumeState>(record.content);
      } else {
        MUST(state.apply(std::get<JournalEvent>(record.content)));
      }
    }
    machine_.write_file("map", journal_offset_b, encode_state(volume_, 2, state));
    MUST(machine_.open());
    refpoint("second");
    write(20, 2, 'c');
    MUST(machine_.close());
    ASSERT_EQ(record_offsets(journal_offset_b).size(), 4U);
  }
  Id128 volume_;
};

TEST_F(CheckGenerationsTest, TheFirstRecordOfAGenerationIsRebuiltFromTheEndOfTheOneBefore) {
  const auto before = machine_.read_file("map", journal_offset_b, 16 * KiB);
  machine_.damage("map", journal_offset_b + 100);
  const CheckReport report = repair();
  EXPECT_TRUE(report.sound()) << describe(report);
  EXPECT_THAT(report.findings, finding(Severity::error, "area B", "nothing is lost"));
  EXPECT_EQ(machine_.read_file("map", journal_offset_b, 16 * KiB), before);
  expect_sound_after_repair();
  expect_live_content();
  expect_checkpoint("c");
  expect_differences_reported("second");
  expect_differences_reported("first");
}

TEST_F(CheckGenerationsTest, DamageInTheGenerationBeforeCostsNothing) {
  const auto offsets = record_offsets(journal_offset_a);
  machine_.damage("map", offsets[2] + 70);
  CheckReport report = repair();
  EXPECT_TRUE(report.sound()) << describe(report);
  expect_sound_after_repair();
  expect_checkpoint("c");
  expect_differences_reported("first");
}

TEST_F(CheckGenerationsTest, WhereBothAreDamagedTheOlderOneCountsAsFarAsItGoes) {
  const auto offsets = record_offsets(journal_offset_a);
  machine_.damage("map", offsets[2] + 70);
  machine_.damage("map", journal_offset_b + 100);
  const CheckReport report = repair();
  EXPECT_TRUE(report.sound()) << describe(report);
  expect_sound_after_repair();
  expect_live_content();
  EXPECT_FALSE(machine_.read_checkpoint("c", 0, block_size).has_value());
  expect_differences_reported("second");
}

TEST_F(CheckGenerationsTest, AGenerationThatNeverWasCompleteIsNoted) {
  const std::vector<std::byte> torn(sector_size, std::byte{7});
  machine_.write_file("map", journal_offset_a, torn);
  const CheckReport report = check();
  EXPECT_TRUE(report.sound());
  EXPECT_EQ(report.notes, 0U) << describe(report);  // what is left of the older one is older
  expect_sound_after_repair();
}

// --- Intents and data.

TEST_F(CheckTest, IntentsThatAreGoneVoidTheReferencePointsOfAVolumeThatWasNotClosed) {
  create();
  write(0, 10, 'a');
  MUST(machine_.reopen());  // the ring has records from before
  refpoint("r");
  write(0, 5, 'b');
  machine_.lose_power();
  const std::vector<std::byte> zeros(intent_slot_count * intent_slot_size);
  machine_.write_file("map", intent_ring_offset, zeros);
  const CheckReport report = repair();
  EXPECT_THAT(report.findings, finding(Severity::error, "intents", "cannot be known"));
  MUST(machine_.open());
  EXPECT_EQ(kind_of(machine_.changes("r")), ErrorKind::full_backup_required);
  refpoint("next");
  EXPECT_TRUE(machine_.changes("next").has_value());
}

TEST_F(CheckTest, ADamagedIntentOfAClosedVolumeIsAWarning) {
  create();
  write(0, 10, 'a');
  for (int i = 0; i < 3; ++i) {
    refpoint("r" + std::to_string(i));
    write(0, 10, 'a');
  }
  MUST(machine_.close());
  machine_.damage("map", intent_ring_offset + intent_slot_size + 30);
  const CheckReport report = check();
  EXPECT_TRUE(report.sound());
  EXPECT_EQ(report.warnings, 1U) << describe(report);
}

TEST_F(CheckTest, ADataFileThatWasChangedMeanwhileIsReported) {
  create();
  write(0, 10, 'a');
  refpoint("r");
  MUST(machine_.close());
  const std::string byte(1, 'x');
  machine_.write_file("data", 0, as_bytes(byte));
  const CheckReport report = check();
  EXPECT_THAT(report.findings, finding(Severity::error, "data", "modified"));
  EXPECT_FALSE(report.sound());
}

TEST_F(CheckTest, ADataFileThatIsMissingOrTooShortIsReported) {
  create();
  MUST(machine_.close());
  MUST(machine_.open_file("data")->truncate(size - 4096));
  EXPECT_THAT(check().findings,
              finding(Severity::error, "data", "it has 16773120 bytes, and the volume 16777216"));
  MUST(machine_.directory->remove("data"));
  EXPECT_THAT(repair().findings, finding(Severity::error, "data", "missing"));
}

// --- Everything.

/// A life of a volume at random: whatever happens to it, a check of what is left finds no error.
class CheckLife {
 public:
  explicit CheckLife(std::uint64_t seed) : machine_(seed), random_(mix64(seed) ^ 7) {
    MUST(machine_.create({.size = size, .block_size = block_size}));
  }

  void live() {
    for (std::uint64_t life = 0; life < 4; ++life) {
      MUST(machine_.open({.direct = true, .hot_regions_max = 1}));
      const std::uint64_t actions = random_.between(5, 60);
      for (std::uint64_t i = 0; i < actions; ++i) act();
      switch (random_.below(3)) {
        case 0: MUST(machine_.close()); break;
        case 1: machine_.die(); break;
        default: machine_.lose_power(); break;
      }
      check();
    }
  }

 private:
  void act() {
    Volume& volume = *machine_.volume;
    const BlockIndex block = random_.one_in(3) ? random_.below(8) : random_.below(block_count - 32);
    const std::uint64_t count = random_.between(1, 32);
    const auto checkpoints = volume.checkpoints();
    switch (random_.below(12)) {
      case 0:
        (void)machine_.checkpoint(fmt::format("c{}", ++names_),
                                  random_.one_in(2) ? Durability::durable : Durability::volatile_);
        break;
      case 1: (void)machine_.refpoint(fmt::format("r{}", ++names_)); break;
      case 2:
        if (!checkpoints.empty())
          (void)machine_.run(
              volume.release_checkpoint(checkpoints[random_.below(checkpoints.size())].name));
        break;
      case 3:
        if (!checkpoints.empty())
          (void)machine_.run(
              volume.convert_checkpoint(checkpoints[random_.below(checkpoints.size())].name, {}));
        break;
      case 4: (void)machine_.flush(); break;
      case 5: (void)machine_.run(volume.zero(block * block_size, count * block_size, false)); break;
      case 6: (void)machine_.run(volume.discard(block * block_size, count * block_size)); break;
      case 7:
        if (!checkpoints.empty() && random_.one_in(4))
          (void)machine_.run(volume.revert(checkpoints[random_.below(checkpoints.size())].name));
        break;
      case 8:
        if (random_.one_in(4)) (void)machine_.run(volume.resize(size + random_.below(3) * 4 * MiB));
        break;
      default:
        (void)machine_.write(block * block_size + (random_.one_in(4) ? 512 : 0), count * block_size,
                             static_cast<char>('a' + names_ % 26));
        break;
    }
  }
  void check() {
    const auto report = machine_.check();
    ASSERT_TRUE(report.has_value()) << report.error().message();
    ASSERT_TRUE(report->sound()) << describe(*report);
    ASSERT_EQ(report->warnings, 0U) << describe(*report);
  }

  VolumeMachine machine_;
  SimRandom random_;
  int names_ = 0;
};

constexpr std::uint64_t lives = 150;

TEST(CheckLifeTest, WhateverHappensToAVolumeLeavesNothingToFind) {
  for (std::uint64_t seed = 1; seed <= lives && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    CheckLife(seed).live();
  }
}

/// Random damage to a volume at rest. What a repair calls sound opens, and gives no wrong answer:
/// every block is what it was, a checkpoint is what it was or given up, and changes leave nothing
/// out or ask for a full backup.
class CheckDamageTest : public CheckTest {
 protected:
  void live(SimRandom& random) {
    create();
    const std::uint64_t actions = random.between(10, 40);
    for (std::uint64_t i = 0; i < actions; ++i) act(random);
    if (random.one_in(4)) {
      machine_.die();
    } else {
      MUST(machine_.close());
    }
  }
  void act(SimRandom& random) {
    const BlockIndex block = random.one_in(3) ? random.below(8) : random.below(block_count - 32);
    const std::uint64_t count = random.between(1, 32);
    const std::string name = fmt::format("n{}", ++names_);
    switch (random.below(9)) {
      case 0: checkpoint(name); break;
      case 1: refpoint(name); break;
      case 2:
        if (checkpoints_.empty()) break;
        MUST(machine_.run(machine_.volume->release_checkpoint(checkpoints_.begin()->first)));
        checkpoints_.erase(checkpoints_.begin());
        break;
      case 3: {
        if (checkpoints_.empty()) break;
        const auto oldest = checkpoints_.begin();
        MUST(machine_.run(machine_.volume->convert_checkpoint(oldest->first, {})));
        refpoints_[oldest->first] = oldest->second;
        checkpoints_.erase(oldest);
        break;
      }
      case 4: MUST(machine_.flush()); break;
      case 5: zero(block, count); break;
      case 6: MUST(machine_.reopen()); break;
      default: write(block, count, static_cast<char>('a' + names_ % 26)); break;
    }
  }
  void damage_something(SimRandom& random) {
    const auto holds = MUST(holds_directory()->list());
    switch (random.below(6)) {
      case 0: machine_.damage("map", superblock_offset + random.below(200)); break;
      case 1:
        machine_.damage("map",
                        journal_offset_a + random.below(40) * sector_size + random.below(150));
        break;
      case 2: machine_.damage("map", journal_offset_a + random.below(40 * sector_size), 512); break;
      case 3:
        machine_.damage(
            "map", intent_ring_offset + random.below(8) * intent_slot_size + random.below(100));
        break;
      case 4: machine_.damage_page(random.below(5), static_cast<unsigned>(random.below(2))); break;
      default:
        if (holds.empty()) break;
        machine_.damage(
            "holds/" + holds[random.below(holds.size())],
            random.one_in(5) ? random.below(60) : random.below(20 * (sector_size + block_size)));
        break;
    }
  }
  std::unique_ptr<Directory> holds_directory() {
    return MUST(machine_.directory->open_directory("holds", false));
  }

  void verify() {
    expect_live_content();
    std::vector<std::string> given_up;
    for (const auto& [name, content] : checkpoints_) {
      const auto bytes = machine_.read_checkpoint(name, 0, size);
      if (bytes) {
        expect_content(*bytes, content, name);
      } else {
        EXPECT_THAT(bytes.error().kind(),
                    testing::AnyOf(ErrorKind::precondition, ErrorKind::not_found));
        given_up.push_back(name);
      }
    }
    for (const std::string& name : given_up) checkpoints_.erase(name);
    for (const auto& [name, content] : refpoints_) {
      const auto page = machine_.changes(name);
      if (page) {
        expect_differences_reported(name);
      } else {
        EXPECT_EQ(page.error().kind(), ErrorKind::full_backup_required);
      }
    }
  }
  int names_ = 0;
};

class CheckDamageSeedTest : public CheckDamageTest,
                            public testing::WithParamInterface<std::uint64_t> {};

TEST_P(CheckDamageSeedTest, WhatARepairCallsSoundGivesNoWrongAnswer) {
  SimRandom random(GetParam());
  live(random);
  const std::uint64_t damages = random.between(1, 3);
  for (std::uint64_t i = 0; i < damages; ++i) damage_something(random);
  const CheckReport before = check();
  const CheckReport report = repair();
  EXPECT_GE(report.errors, before.errors);
  if (!report.sound()) return;
  SCOPED_TRACE(describe(report));
  expect_sound_after_repair();
  if (HasFailure()) return;
  verify();
  // And the volume lives on.
  for (int i = 0; i < 10; ++i) act(random);
  verify();
  MUST(machine_.close());
  EXPECT_TRUE(check().sound()) << describe(check());
}

INSTANTIATE_TEST_SUITE_P(Seeds, CheckDamageSeedTest,
                         testing::Range<std::uint64_t>(0, getenv("SEEDS") ? atoi(getenv("SEEDS"))
                                                                          : 60));

}  // namespace
}  // namespace berth::disk
