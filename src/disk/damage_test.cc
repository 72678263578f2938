// Damage to a volume's map that an open must notice (rule 9): what cannot be known any more asks
// for a full backup, what is known is answered exactly, and the guest's data is served.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/checksum.h"
#include "disk/layout.h"
#include "disk/test_support.h"

namespace berth::disk {
namespace {

using testing::HasSubstr;

constexpr std::uint32_t block_size = 4 * KiB;
constexpr std::uint64_t block_count = 4096;
constexpr std::uint64_t size = block_count * block_size;  // five map pages, four regions

class DamageTest : public testing::Test {
 protected:
  void create(bool backed = false) {
    if (backed) {
      live_.assign(block_count, 'z');
      machine_.open_backing = [this](const std::string& /*specification*/) {
        return open_constant(&machine_, size, 'z');
      };
    }
    MUST(machine_.create(
        {.size = size, .block_size = block_size, .backing = backed ? "image" : ""}));
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
  /// Two versions of page 0, a reference point between them, and a page of one version; closed.
  void close_with_two_versions() {
    write(0, 10, 'a');
    MUST(machine_.flush());
    MUST(machine_.refpoint("r"));
    write(2, 5, 'b');
    write(20, 5, 'c');
    write(1200, 1, 'd');
    MUST(machine_.close());
  }
  void zero_slot(std::uint64_t page, unsigned slot) {
    const std::vector<std::byte> zeros(page_size);
    machine_.write_file("map", page_slot_offset(page, slot), zeros);
  }

  void expect_open() {
    const auto opened = machine_.open();
    ASSERT_TRUE(opened.has_value()) << opened.error().message();
  }
  void expect_content() {
    const std::string bytes = MUST(machine_.read(0, size));
    for (BlockIndex block = 0; block < block_count; ++block) {
      const std::string found = bytes.substr(block * block_size, block_size);
      ASSERT_TRUE(found == std::string(block_size, live_[block]))
          << "block " << block << " begins with " << int{found[0]} << ", not with "
          << int{live_[block]};
    }
  }
  void expect_void(const std::string& name, const std::string& reason) {
    const auto page = machine_.changes(name);
    ASSERT_FALSE(page.has_value()) << page->extents.size() << " extents, exact: " << page->exact;
    EXPECT_EQ(to_string(page.error().kind()), to_string(ErrorKind::full_backup_required));
    EXPECT_THAT(page.error().message(), HasSubstr(reason));
  }
  /// Points that are made from now on are answered, exactly and after another close.
  void expect_new_points_count() {
    MUST(machine_.refpoint("new"));
    EXPECT_TRUE(MUST(machine_.changes("new")).extents.empty());
    write(7, 1, 'n');
    MUST(machine_.reopen());
    const ChangesPage page = MUST(machine_.changes("new"));
    EXPECT_EQ(page.extents, (std::vector<Extent>{{7 * block_size, block_size}}));
    EXPECT_TRUE(page.exact);
    expect_content();
  }
  void expect_check(std::uint64_t errors) {
    const CheckReport report = MUST(machine_.check());
    EXPECT_EQ(report.errors, errors) << describe(report);
    EXPECT_EQ(report.warnings, 0U) << describe(report);
  }

  VolumeMachine machine_;
  std::vector<char> live_ = std::vector<char>(block_count, '\0');
};

// --- Pages of a volume that was closed.

TEST_F(DamageTest, TheNewerVersionOfAPageIsMissed) {
  create();
  close_with_two_versions();
  machine_.damage_page(0, 1);
  expect_check(1);
  expect_open();
  expect_content();
  expect_void("r", "pages of the block map were damaged");
  expect_new_points_count();
  MUST(machine_.close());
  expect_check(0);
}

TEST_F(DamageTest, TheOnlyVersionOfAPageIsMissed) {
  create();
  close_with_two_versions();
  machine_.damage_page(1, 0);
  expect_check(1);
  expect_open();
  expect_content();
  expect_void("r", "pages of the block map were damaged");
  expect_new_points_count();
}

TEST_F(DamageTest, AVersionThatReadsAsZerosIsMissed) {
  create();
  close_with_two_versions();
  zero_slot(0, 1);
  expect_check(1);
  expect_open();
  expect_content();
  expect_void("r", "pages of the block map were damaged");
  expect_new_points_count();
}

TEST_F(DamageTest, APageThatReadsAsIfItHadNeverBeenWrittenIsMissed) {
  create(true);
  close_with_two_versions();
  zero_slot(1, 0);
  expect_check(1);
  expect_open();
  expect_content();
  expect_void("r", "pages of the block map were damaged");
  expect_new_points_count();
}

TEST_F(DamageTest, AWriteThatTheDeviceLostIsMissed) {
  create();
  write(0, 1, 'a');
  MUST(machine_.reopen());  // version 1
  write(0, 2, 'b');
  MUST(machine_.refpoint("r"));
  MUST(machine_.reopen());  // version 2
  const auto older = machine_.read_file("map", page_slot_offset(0, 0), page_size);
  write(0, 3, 'c');
  MUST(machine_.close());  // version 3, over version 1
  machine_.write_file("map", page_slot_offset(0, 0), older);
  expect_check(1);
  expect_open();
  expect_content();
  expect_void("r", "pages of the block map were damaged");
  expect_new_points_count();
}

TEST_F(DamageTest, ADamagedOlderVersionCostsNothing) {
  create();
  close_with_two_versions();
  machine_.damage_page(0, 0);
  expect_check(0);
  expect_open();
  expect_content();
  const ChangesPage page = MUST(machine_.changes("r"));
  EXPECT_TRUE(page.exact);
  EXPECT_EQ(page.extents, (std::vector<Extent>{{2 * block_size, 5 * block_size},
                                               {20 * block_size, 5 * block_size},
                                               {1200 * block_size, block_size}}));
  expect_new_points_count();
}

TEST_F(DamageTest, OverABackingBlocksThatBecamePresentInTheLostVersionAreServed) {
  create(true);
  close_with_two_versions();
  machine_.damage_page(0, 1);
  expect_open();
  expect_content();
  // What was found out of them is durable: it must not depend on the damaged page again.
  machine_.lose_power();
  expect_open();
  expect_content();
  expect_void("r", "pages of the block map were damaged");
}

TEST_F(DamageTest, CheckpointsReadWhatTheyDidAndTheirLaterChangesAreNotKnown) {
  create();
  write(0, 10, 'a');
  MUST(machine_.checkpoint("c"));
  write(2, 5, 'b');
  MUST(machine_.flush());
  write(4, 5, 'c');
  MUST(machine_.close());
  machine_.damage_page(0, 1);
  expect_open();
  expect_content();
  EXPECT_EQ(MUST(machine_.read_checkpoint("c", 0, 10 * block_size)),
            std::string(10 * block_size, 'a'));
  expect_void("c", "pages of the block map were damaged");
  write(0, 10, 'd');
  EXPECT_EQ(MUST(machine_.read_checkpoint("c", 0, 10 * block_size)),
            std::string(10 * block_size, 'a'));
}

TEST_F(DamageTest, APageWithAStateThatDoesNotExistIsDamageAndNoMemoryIsRead) {
  create();
  close_with_two_versions();
  auto page = machine_.read_file("map", page_slot_offset(0, 1), page_size);
  for (std::size_t i = 0; i < 8; ++i) page[page_header_size + 4 * i] |= std::byte{3};
  store_le<std::uint64_t>(page.data() + 8, 0);
  store_le<std::uint64_t>(page.data() + 8, checksum64(page));
  machine_.write_file("map", page_slot_offset(0, 1), page);
  expect_check(1);
  expect_open();
  expect_content();
  expect_void("r", "pages of the block map were damaged");
}

// --- Intents of a volume that was not closed.

TEST_F(DamageTest, ARingThatIsGoneAfterAPowerLossIsMissed) {
  for (const bool reopened : {true, false}) {
    SCOPED_TRACE(reopened);
    VolumeMachine machine;
    MUST(machine.create({.size = size, .block_size = block_size}));
    MUST(machine.open());
    MUST(machine.write(0, block_size, 'a'));
    if (reopened) MUST(machine.reopen());  // the open record knows of records
    MUST(machine.refpoint("r"));
    MUST(machine.write(0, block_size, 'b'));
    machine.lose_power();
    const std::vector<std::byte> zeros(intent_slot_count * intent_slot_size);
    machine.write_file("map", intent_ring_offset, zeros);
    EXPECT_EQ(MUST(machine.check()).errors, 1U);
    MUST(machine.open());
    const auto page = machine.changes("r");
    ASSERT_FALSE(page.has_value());
    EXPECT_EQ(to_string(page.error().kind()), to_string(ErrorKind::full_backup_required));
    EXPECT_THAT(page.error().message(), HasSubstr("intents"));
    MUST(machine.refpoint("new"));
    MUST(machine.write(block_size, block_size, 'c'));
    machine.lose_power();
    MUST(machine.open());
    EXPECT_FALSE(MUST(machine.changes("new")).extents.empty());
  }
}

TEST_F(DamageTest, NewestRecordsThatAreDamagedBesideAWholeOlderOneAreMissed) {
  create();
  MUST(machine_.refpoint("r"));
  for (BlockIndex region = 0; region < 4; ++region) write(region * 1024, 1, 'a');  // records 2 to 5
  machine_.lose_power();
  for (const std::uint64_t sequence : {4U, 5U}) {
    machine_.damage("map", intent_ring_offset + sequence % intent_slot_count * intent_slot_size);
  }
  expect_open();
  expect_void("r", "intents");
}

TEST_F(DamageTest, ARingThatIsGoneWhenALiveMapIsTakenOverCoversNothingAndWhatFollowsCounts) {
  create();
  write(0, 1, 'a');
  MUST(machine_.reopen());
  MUST(machine_.refpoint("r"));
  write(0, 1, 'b');
  machine_.die();
  const std::vector<std::byte> zeros(intent_slot_count * intent_slot_size);
  machine_.write_file("map", intent_ring_offset, zeros);
  expect_open();  // with the live map: exactly
  EXPECT_EQ(MUST(machine_.changes("r")).extents, (std::vector<Extent>{{0, block_size}}));
  write(2000, 1, 'c');
  machine_.lose_power();
  expect_open();
  // Whatever is answered, nothing is left out.
  const auto page = machine_.changes("r");
  if (page) {
    EXPECT_GE(page->extents.size(), 2U);
  } else {
    EXPECT_EQ(page.error().kind(), ErrorKind::full_backup_required);
  }
}

// --- Live maps that nobody goes on with.

class LeftoverTest : public DamageTest {
 protected:
  bool live_map_exists(std::uint64_t bytes) {
    const auto pages = page_count_for(divide_up(bytes, block_size));
    const auto name = fmt::format("{}.{}", volume_.to_string(), pages);
    return machine_.memory->open(name).has_value();
  }
  void create_closed_once() {
    create();
    volume_ = machine_.volume->info().id;
    write(0, 10, 'a');
    MUST(machine_.reopen());
  }
  static constexpr std::uint64_t grown = size + 32 * MiB;
  Id128 volume_;
};

TEST_F(LeftoverTest, AResizeWhoseRecordFindsNoSpaceLeavesNoLiveMapBehind) {
  create_closed_once();
  machine_.host.faults().add({.path = "vol/map", .on = fault_on::write, .error = ENOSPC});
  const auto resized = machine_.run(machine_.volume->resize(grown));
  ASSERT_FALSE(resized.has_value());
  EXPECT_EQ(to_string(resized.error().kind()), to_string(ErrorKind::no_space));
  EXPECT_FALSE(live_map_exists(grown));
  EXPECT_TRUE(live_map_exists(size));
  write(3, 1, 'b');
  MUST(machine_.run(machine_.volume->resize(grown)));
  EXPECT_FALSE(live_map_exists(size));
  MUST(machine_.close());
  EXPECT_FALSE(live_map_exists(grown));
}

TEST_F(LeftoverTest, ADeathAnywhereInAResizeLeavesNoLiveMapBehind) {
  bool finished = false;
  for (std::uint64_t steps = 1; !finished && !HasFailure(); ++steps) {
    SCOPED_TRACE(steps);
    VolumeMachine machine(steps);
    MUST(machine.create({.size = size, .block_size = block_size}));
    MUST(machine.open());
    const Id128 volume = machine.volume->info().id;
    MUST(machine.write(0, block_size, 'a'));
    MUST(machine.reopen());
    MUST(machine.write(block_size, block_size, 'b'));
    finished = machine.loop->run_at_most(steps, machine.volume->resize(grown)).has_value();
    machine.die();
    MUST(machine.open());
    const std::uint64_t now = machine.volume->info().size;
    const auto exists = [&machine, &volume](std::uint64_t bytes) {
      const auto pages = page_count_for(divide_up(bytes, block_size));
      return machine.memory->open(fmt::format("{}.{}", volume.to_string(), pages)).has_value();
    };
    EXPECT_TRUE(exists(now));
    EXPECT_FALSE(exists(now == size ? grown : size)) << "the volume has " << now << " bytes";
    EXPECT_EQ(MUST(machine.read(block_size, 1)), "b");
    MUST(machine.close());
    EXPECT_FALSE(exists(now));
  }
}

}  // namespace
}  // namespace berth::disk
