// What can go wrong around a volume: each gives one clear error of the right kind, and loses
// nothing.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "disk/hold_layer.h"
#include "disk/map_file.h"
#include "disk/test_support.h"

namespace berth::disk {
namespace {

using testing::HasSubstr;

constexpr std::uint32_t block_size = 16 * KiB;
constexpr std::uint64_t size = 32 * MiB;

class EngineErrorsTest : public testing::Test {
 protected:
  void create(CreateOptions options = {.size = size, .block_size = block_size}) {
    MUST(machine_.create(std::move(options)));
    MUST(machine_.open());
  }
  void write(std::uint64_t block, char byte) {
    MUST(machine_.write(block * block_size, block_size, byte));
  }
  void expect_block(std::uint64_t block, char byte) {
    const auto bytes = machine_.read(block * block_size, block_size);
    ASSERT_TRUE(bytes.has_value()) << bytes.error().message();
    EXPECT_TRUE(*bytes == std::string(block_size, byte))
        << "block " << block << " begins with " << int{(*bytes)[0]};
  }
  void expect_checkpoint_block(const std::string& name, std::uint64_t block, char byte) {
    const auto bytes = machine_.read_checkpoint(name, block * block_size, block_size);
    ASSERT_TRUE(bytes.has_value()) << bytes.error().message();
    EXPECT_TRUE(*bytes == std::string(block_size, byte))
        << "block " << block << " begins with " << int{(*bytes)[0]};
  }
  template <typename T>
  static void expect_error(const Result<T>& result, ErrorKind kind, const std::string& reason) {
    ASSERT_FALSE(result.has_value());
    EXPECT_EQ(to_string(result.error().kind()), to_string(kind)) << result.error().message();
    EXPECT_THAT(result.error().message(), HasSubstr(reason));
  }
  VolumeMachine machine_;
};

// --- The map.

TEST_F(EngineErrorsTest, APageOfTheMapWithoutAWholeCopyIsCorruptAndNamesTheWayOut) {
  create();
  write(0, 'a');
  MUST(machine_.flush());
  write(1, 'b');
  MUST(machine_.refpoint("r"));
  write(1, 'c');
  MUST(machine_.close());
  machine_.damage_page(0, 0);
  machine_.damage_page(0, 1);
  expect_error(machine_.open(), ErrorKind::corrupt, "page 0; 'berth volume check --repair'");
  ASSERT_TRUE(MUST(machine_.check(true)).sound());
  MUST(machine_.open());
  expect_block(0, 'a');
  expect_block(1, 'c');
  EXPECT_FALSE(MUST(machine_.changes("r")).exact);
}

TEST_F(EngineErrorsTest, AJournalWithAHoleIsCorrupt) {
  create();
  MUST(machine_.refpoint("r1"));
  MUST(machine_.refpoint("r2"));
  MUST(machine_.close());
  machine_.damage("map", journal_offset_a + 2 * sector_size + 40);
  expect_error(machine_.open(), ErrorKind::corrupt, "check --repair");
}

TEST_F(EngineErrorsTest, AMapThatIsSomethingElseIsCorrupt) {
  create();
  MUST(machine_.close());
  const std::string text(8192, 'x');
  machine_.write_file("map", 0, as_bytes(text));
  expect_error(machine_.open(), ErrorKind::corrupt, "not a block map");
}

TEST_F(EngineErrorsTest, ADirectoryWithoutAMapIsNotFound) {
  expect_error(machine_.open(), ErrorKind::not_found, "map");
}

// --- Holds.

TEST_F(EngineErrorsTest, AHoldWithATornTailHasEverythingThatWasAcknowledged) {
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    VolumeMachine machine(seed);
    MUST(machine.create({.size = size, .block_size = block_size}));
    MUST(machine.open());
    MUST(machine.write(0, 100 * block_size, 'a'));
    MUST(machine.checkpoint("c"));
    std::uint64_t overwritten = 0;
    const AlignedBuffer block(block_size);
    std::memset(block.data(), 'b', block_size);
    for (std::uint64_t left = 200 * seed; overwritten < 100; ++overwritten) {
      const std::uint64_t before = machine.loop->steps();
      const auto done = machine.loop->run_at_most(
          left, machine.volume->write(overwritten * block_size, block.bytes()));
      if (!done) break;  // the process dies in the middle of it
      left -= std::min(left, machine.loop->steps() - before);
    }
    machine.lose_power();
    MUST(machine.open());
    const auto bytes = machine.read_checkpoint("c", 0, 100 * block_size);
    ASSERT_TRUE(bytes.has_value()) << bytes.error().message();
    EXPECT_TRUE(*bytes == std::string(100 * block_size, 'a')) << "seed " << seed;
    // What nobody has flushed is old or new; the checkpoint goes on being what it was.
    MUST(machine.write(0, 100 * block_size, 'c'));
    EXPECT_TRUE(MUST(machine.read_checkpoint("c", 0, 100 * block_size)) ==
                std::string(100 * block_size, 'a'));
  }
}

TEST_F(EngineErrorsTest, AMissingOrForeignHoldIsAnErrorThatNamesTheWayOut) {
  create();
  write(0, 'a');
  MUST(machine_.checkpoint("c"));
  write(0, 'b');
  MUST(machine_.close());
  machine_.damage("holds/" + HoldLayer::file_name(1), 20);
  expect_error(machine_.open(), ErrorKind::corrupt, "check --repair");
  const auto holds = MUST(machine_.directory->open_directory("holds", false));
  MUST(holds->remove(HoldLayer::file_name(1)));
  expect_error(machine_.open(), ErrorKind::not_found, "check --repair");
  ASSERT_TRUE(MUST(machine_.check(true)).sound());
  MUST(machine_.open());
  expect_block(0, 'b');
  expect_error(machine_.volume->read_checkpoint("c"), ErrorKind::precondition, "given up");
  EXPECT_TRUE(machine_.changes("c").has_value());  // what has changed since is still known
}

// --- The data file.

TEST_F(EngineErrorsTest, ADataFileChangedBehindOurBackAsksForAFullBackup) {
  create();
  write(0, 'a');
  MUST(machine_.refpoint("r"));
  MUST(machine_.checkpoint("c"));
  write(1, 'b');
  MUST(machine_.close());
  const std::string other(512, 'x');
  machine_.write_file("data", 5 * block_size, as_bytes(other));

  MUST(machine_.open());
  ASSERT_FALSE(machine_.events.empty());
  EXPECT_THAT(machine_.events.back().message, HasSubstr("data file was changed"));
  expect_error(machine_.changes("r"), ErrorKind::full_backup_required,
               "changed while the volume was closed");
  expect_error(machine_.changes("c"), ErrorKind::full_backup_required,
               "changed while the volume was closed");
  expect_error(machine_.volume->read_checkpoint("c"), ErrorKind::precondition, "given up");
  expect_block(0, 'a');
  expect_block(1, 'b');
  EXPECT_EQ(MUST(machine_.read(5 * block_size, 1)), "x");

  // From here on it is known again.
  MUST(machine_.refpoint("next"));
  write(7, 'c');
  EXPECT_EQ(MUST(machine_.changes("next")).extents,
            (std::vector<Extent>{{7 * block_size, block_size}}));
  expect_error(machine_.changes("r"), ErrorKind::full_backup_required,
               "changed while the volume was closed");
  MUST(machine_.reopen());
  EXPECT_TRUE(machine_.changes("next").has_value());
}

TEST_F(EngineErrorsTest, AnotherFileInItsPlaceAsksForAFullBackup) {
  create();
  write(0, 'a');
  MUST(machine_.refpoint("r"));
  MUST(machine_.close());
  MUST(machine_.directory->rename("data", "old"));
  const auto other = MUST(machine_.directory->open("data", {.create = true}));
  MUST(other->truncate(size));
  MUST(machine_.open());
  expect_error(machine_.changes("r"), ErrorKind::full_backup_required,
               "changed while the volume was closed");
}

TEST_F(EngineErrorsTest, ADataFileThatWasNotTouchedVouches) {
  create();
  write(0, 'a');
  MUST(machine_.refpoint("r"));
  write(1, 'b');
  for (int i = 0; i < 5; ++i) {
    MUST(machine_.close());
    machine_.lose_power();  // after a clean close it costs nothing
    MUST(machine_.open());
    const auto page = machine_.changes("r");
    ASSERT_TRUE(page.has_value()) << page.error().message();
    EXPECT_TRUE(page->exact);
    EXPECT_EQ(page->extents, (std::vector<Extent>{{block_size, block_size}}));
  }
}

TEST_F(EngineErrorsTest, ADataFileThatIsTooShortOrMissingIsSaid) {
  create();
  MUST(machine_.close());
  MUST(machine_.open_file("data")->truncate(size - block_size));
  expect_error(machine_.open(), ErrorKind::corrupt, "the data file");
  MUST(machine_.directory->remove("data"));
  expect_error(machine_.open(), ErrorKind::not_found, "data");
}

// --- A full disk.

TEST_F(EngineErrorsTest, AFullDiskFailsTheWriteThatNeedsSpaceAndNothingElse) {
  create();
  write(0, 'a');
  MUST(machine_.flush());
  MUST(machine_.refpoint("r"));
  machine_.host.set_space_max("vol/data", block_size);
  expect_error(machine_.write(100 * block_size, block_size, 'x'), ErrorKind::no_space, "");
  write(0, 'b');  // its space is there
  MUST(machine_.flush());
  expect_block(0, 'b');
  EXPECT_TRUE(machine_.changes("r").has_value());
  EXPECT_EQ(machine_.volume->refpoints().size(), 1U);
  machine_.host.set_space_max("vol/data", UINT64_MAX);
  write(100, 'x');
  MUST(machine_.reopen());
  expect_block(0, 'b');
  expect_block(100, 'x');
}

TEST_F(EngineErrorsTest, ADurableCheckpointIsKeptOnAFullDiskAndTheWriteIsRefused) {
  create();
  write(0, 'a');
  MUST(machine_.checkpoint("c"));
  machine_.host.set_space_max(machine_.host.space_used());
  expect_error(machine_.write(0, block_size, 'b'), ErrorKind::no_space, "holds/");
  expect_block(0, 'a');
  expect_checkpoint_block("c", 0, 'a');
  // Deleting it needs no space, and frees some.
  MUST(machine_.run(machine_.volume->release_checkpoint("c")));
  write(0, 'b');
  expect_block(0, 'b');
}

TEST_F(EngineErrorsTest, AVolatileCheckpointIsGivenUpBeforeAGuestsWriteFails) {
  create();
  write(0, 'a');
  MUST(machine_.checkpoint("c", Durability::volatile_));
  machine_.host.set_space_max(machine_.host.space_used());
  write(0, 'b');
  expect_block(0, 'b');
  ASSERT_EQ(machine_.events.size(), 1U);
  EXPECT_EQ(machine_.events[0].kind, VolumeEvent::Kind::checkpoint_lost);
  EXPECT_THAT(machine_.events[0].message, HasSubstr("'c'"));
  EXPECT_TRUE(machine_.volume->checkpoints().at(0).lost);
  expect_error(machine_.volume->read_checkpoint("c"), ErrorKind::precondition, "given up");
}

TEST_F(EngineErrorsTest, ACheckpointThatFindsNoSpaceIsNotMade) {
  create();
  write(0, 'a');
  MUST(machine_.flush());
  machine_.host.set_space_max(machine_.host.space_used());
  expect_error(machine_.checkpoint("c"), ErrorKind::no_space, "");
  EXPECT_TRUE(machine_.volume->checkpoints().empty());
  write(0, 'b');
  machine_.host.set_space_max(UINT64_MAX);
  MUST(machine_.checkpoint("c"));
  write(0, 'd');
  expect_checkpoint_block("c", 0, 'b');
}

// --- A read-only file system.

TEST_F(EngineErrorsTest, AReadOnlyFileSystemIsSaid) {
  create();
  write(0, 'a');
  MUST(machine_.close());
  machine_.host.set_read_only(true);
  expect_error(machine_.open(), ErrorKind::read_only, "cannot open");
  machine_.host.set_read_only(false);
  MUST(machine_.open());
  expect_block(0, 'a');
}

TEST_F(EngineErrorsTest, NothingIsMadeOnAReadOnlyFileSystem) {
  machine_.host.set_read_only(true);
  expect_error(machine_.create({.size = size, .block_size = block_size}), ErrorKind::read_only, "");
}

TEST_F(EngineErrorsTest, AFileSystemThatTurnsReadOnlyKeepsReading) {
  create();
  write(0, 'a');
  MUST(machine_.flush());
  machine_.host.set_read_only(true);
  expect_error(machine_.write(0, block_size, 'b'), ErrorKind::read_only, "");
  expect_error(machine_.write(5 * block_size, block_size, 'b'), ErrorKind::read_only, "");
  EXPECT_FALSE(machine_.checkpoint("c").has_value());
  expect_block(0, 'a');
  machine_.host.set_read_only(false);
  machine_.lose_power();
  MUST(machine_.open());
  expect_block(0, 'a');
}

// --- A second opener.

TEST_F(EngineErrorsTest, ASecondKeeperIsRefused) {
  create();
  write(0, 'a');
  SimLoop second(machine_.host, *machine_.loop);
  const auto directory = MUST(machine_.host.open_directory(second, "vol"));
  VolumeEnvironment environment = machine_.environment();
  const auto refused = second.run_until_complete(Volume::open({.loop = second,
                                                               .directory = *directory,
                                                               .live_store = *machine_.memory,
                                                               .random = machine_.random,
                                                               .open_backing = {},
                                                               .report_event = {}},
                                                              {}));
  expect_error(refused, ErrorKind::in_use, "vol/map");
  write(0, 'b');
  expect_block(0, 'b');
  MUST(machine_.close());
  const auto opened = second.run_until_complete(Volume::open({.loop = second,
                                                              .directory = *directory,
                                                              .live_store = *machine_.memory,
                                                              .random = machine_.random,
                                                              .open_backing = {},
                                                              .report_event = {}},
                                                             {}));
  ASSERT_TRUE(opened.has_value()) << opened.error().message();
  MUST(second.run_until_complete((*opened)->close()));
}

// --- Questions that cannot be answered.

TEST_F(EngineErrorsTest, ChangesAreNeverAnEmptyListWhereTheyAreNotKnown) {
  create();
  MUST(machine_.refpoint("r1"));
  write(0, 'a');
  MUST(machine_.checkpoint("c1"));
  write(1, 'b');
  MUST(machine_.refpoint("r2"));
  MUST(machine_.checkpoint("c2"));

  expect_error(machine_.changes("nobody"), ErrorKind::full_backup_required,
               "no reference point 'nobody'");
  expect_error(machine_.changes("r1", "nobody"), ErrorKind::not_found, "no checkpoint 'nobody'");
  expect_error(machine_.changes("r2", "c1"), ErrorKind::precondition, "older");
  EXPECT_EQ(MUST(machine_.changes("r1", "c1")).extents, (std::vector<Extent>{{0, block_size}}));
  EXPECT_EQ(MUST(machine_.changes("c1", "c2")).extents,
            (std::vector<Extent>{{block_size, block_size}}));
  EXPECT_TRUE(MUST(machine_.changes("r2", "c2")).extents.empty());
  EXPECT_TRUE(MUST(machine_.changes("c2", "c2")).extents.empty());

  ChangesRequest request;
  request.since = "r1";
  request.nonce = machine_.volume->refpoints().at(0).nonce;
  EXPECT_TRUE(machine_.run(machine_.volume->changes(request)).has_value());
  request.nonce = machine_.volume->refpoints().at(1).nonce;
  expect_error(machine_.run(machine_.volume->changes(request)), ErrorKind::full_backup_required,
               "another one");

  MUST(machine_.run(machine_.volume->delete_refpoint("r1")));
  MUST(machine_.refpoint("r1"));  // the name again: not the point
  request.nonce = Id128{};
  expect_error(machine_.run(machine_.volume->changes(request)), ErrorKind::full_backup_required,
               "another one");
}

TEST_F(EngineErrorsTest, ARangeBeyondTheEndIsRefusedAndNothingIsWritten) {
  create();
  write(size / block_size - 1, 'a');
  expect_error(machine_.write(size - 512, 1024, 'x'), ErrorKind::invalid_argument, "not within");
  expect_error(machine_.read(size, 1), ErrorKind::invalid_argument, "not within");
  expect_error(machine_.read(UINT64_MAX - 10, 100), ErrorKind::invalid_argument, "not within");
  expect_error(machine_.run(machine_.volume->zero(size - block_size, 2 * block_size, false)),
               ErrorKind::invalid_argument, "not within");
  expect_error(machine_.run(machine_.volume->discard(UINT64_MAX, 1)), ErrorKind::invalid_argument,
               "not within");
  expect_error(machine_.run(machine_.volume->allocation(size, 1, 1)), ErrorKind::invalid_argument,
               "not within");
  EXPECT_TRUE(machine_.read(size, 0).has_value());
  expect_block(size / block_size - 1, 'a');
}

// --- Points.

TEST_F(EngineErrorsTest, NamesAreCheckedWhereTheyEnter) {
  create();
  for (const std::string& name :
       std::vector<std::string>{"a b", "a/b", "ä", std::string(129, 'x'), "@", "\n"}) {
    expect_error(machine_.checkpoint(name), ErrorKind::invalid_argument, "cannot be the name");
    expect_error(machine_.refpoint(name), ErrorKind::invalid_argument, "cannot be the name");
  }
  expect_error(machine_.run(machine_.volume->cut({})), ErrorKind::invalid_argument,
               "checkpoint, a reference point, or both");
  MUST(machine_.checkpoint(std::string(128, 'x')));
  MUST(machine_.checkpoint("c"));
  MUST(machine_.refpoint("r"));
  expect_error(machine_.checkpoint("c"), ErrorKind::already_exists, "'c'");
  expect_error(machine_.refpoint("r"), ErrorKind::already_exists, "'r'");
  expect_error(machine_.run(machine_.volume->convert_checkpoint("c", "r")),
               ErrorKind::already_exists, "'r'");
  expect_error(machine_.run(machine_.volume->convert_checkpoint("c", "r r")),
               ErrorKind::invalid_argument, "name");
  EXPECT_EQ(machine_.volume->checkpoints().size(), 2U);
  EXPECT_EQ(machine_.volume->refpoints().size(), 1U);
}

TEST_F(EngineErrorsTest, WhatIsNotThereIsNotFound) {
  create();
  expect_error(machine_.run(machine_.volume->release_checkpoint("x")), ErrorKind::not_found, "'x'");
  expect_error(machine_.run(machine_.volume->convert_checkpoint("x", "y")), ErrorKind::not_found,
               "'x'");
  expect_error(machine_.run(machine_.volume->delete_refpoint("x")), ErrorKind::not_found, "'x'");
  expect_error(machine_.run(machine_.volume->revert("x")), ErrorKind::not_found, "'x'");
  expect_error(machine_.volume->read_checkpoint("x"), ErrorKind::not_found, "'x'");
}

TEST_F(EngineErrorsTest, ACheckpointThatSomebodyReadsStays) {
  create();
  write(0, 'a');
  MUST(machine_.checkpoint("c"));
  write(0, 'b');
  {
    const auto reader = MUST(machine_.volume->read_checkpoint("c"));
    expect_error(machine_.run(machine_.volume->release_checkpoint("c")), ErrorKind::in_use,
                 "reading");
    expect_error(machine_.run(machine_.volume->convert_checkpoint("c", "")), ErrorKind::in_use,
                 "reading");
    expect_error(machine_.run(reader->read(size, {reinterpret_cast<std::byte*>(&machine_), 1})),
                 ErrorKind::invalid_argument, "not within");
  }
  MUST(machine_.run(machine_.volume->release_checkpoint("c")));
}

TEST_F(EngineErrorsTest, APointOfAnUndecidedGroupCannotBeUsed) {
  create();
  const Id128 group = machine_.random.id();
  MUST(machine_.run(machine_.volume->cut(
      {.checkpoint = "c", .refpoint = "r", .durability = Durability::durable, .group = group})));
  expect_error(machine_.volume->read_checkpoint("c"), ErrorKind::precondition, "not decided");
  expect_error(machine_.changes("r"), ErrorKind::precondition, "not decided");
  expect_error(machine_.run(machine_.volume->convert_checkpoint("c", "x")), ErrorKind::precondition,
               "not decided");
  expect_error(machine_.run(machine_.volume->revert("c")), ErrorKind::precondition, "undecided");
  MUST(machine_.run(machine_.volume->settle_group(group, true)));
  EXPECT_TRUE(machine_.changes("r").has_value());
  EXPECT_TRUE(machine_.volume->read_checkpoint("c").has_value());
}

// --- Resize.

TEST_F(EngineErrorsTest, AVolumeWithCheckpointsDoesNotShrink) {
  create();
  MUST(machine_.checkpoint("c"));
  expect_error(machine_.run(machine_.volume->resize(size / 2)), ErrorKind::precondition,
               "checkpoints");
  expect_error(machine_.run(machine_.volume->resize(0)), ErrorKind::invalid_argument, "size of 0");
  expect_error(machine_.run(machine_.volume->resize(size + 512)), ErrorKind::invalid_argument,
               "multiple");
  expect_error(machine_.run(machine_.volume->resize(volume_size_max + sector_size)),
               ErrorKind::invalid_argument, "size of");
  EXPECT_EQ(machine_.volume->info().size, size);
  MUST(machine_.run(machine_.volume->release_checkpoint("c")));
  MUST(machine_.run(machine_.volume->resize(size / 2)));
  EXPECT_EQ(machine_.volume->info().size, size / 2);
}

// --- Failed syncs.

TEST_F(EngineErrorsTest, AFailedSyncOfTheDataFailsEveryFlushUntilTheVolumeIsOpenedAgain) {
  create();
  write(0, 'a');
  MUST(machine_.flush());
  write(1, 'b');
  machine_.host.faults().add({.path = "vol/data", .on = fault_on::sync});
  expect_error(machine_.flush(), ErrorKind::io_error, "sync");
  expect_error(machine_.flush(), ErrorKind::io_error, "open it again");
  expect_error(machine_.checkpoint("c"), ErrorKind::io_error, "open it again");
  EXPECT_TRUE(machine_.volume->info().failed);
  expect_block(0, 'a');
  machine_.lose_power();
  MUST(machine_.open());
  expect_block(0, 'a');
  MUST(machine_.flush());
}

TEST_F(EngineErrorsTest, AFailedSyncOfTheMapFailsWhatNeedsIt) {
  create();
  write(0, 'a');
  MUST(machine_.flush());
  machine_.host.faults().add({.path = "vol/map", .on = fault_on::sync});
  expect_error(machine_.refpoint("r"), ErrorKind::io_error, "sync");
  EXPECT_FALSE(machine_.refpoint("r2").has_value());
  expect_block(0, 'a');
  machine_.lose_power();
  MUST(machine_.open());
  expect_block(0, 'a');
  MUST(machine_.refpoint("r3"));
}

// --- Making one.

TEST_F(EngineErrorsTest, AVolumeIsNotMadeOverAnother) {
  create();
  write(0, 'a');
  MUST(machine_.close());
  expect_error(machine_.create({.size = size, .block_size = block_size}), ErrorKind::already_exists,
               "volume already");
  MUST(machine_.open());
  expect_block(0, 'a');
}

TEST_F(EngineErrorsTest, AGeometryThatCannotBeIsRefused) {
  for (const std::uint32_t wrong : {0U, 3000U, 2048U, 48U * 1024U, 4U * 1024U * 1024U}) {
    VolumeMachine machine;
    expect_error(machine.create({.size = size, .block_size = wrong}), ErrorKind::invalid_argument,
                 "block size");
    EXPECT_FALSE(MUST(machine.directory->exists("map"))) << wrong;
  }
}

TEST_F(EngineErrorsTest, ASizeThatCannotBeIsRefused) {
  for (const std::uint64_t wrong : {std::uint64_t{1000}, volume_size_max + 512, std::uint64_t{0}}) {
    VolumeMachine machine;
    const auto made = machine.create({.size = wrong, .block_size = block_size});
    expect_error(made, ErrorKind::invalid_argument, "size");
    EXPECT_FALSE(MUST(machine.directory->exists("map"))) << wrong;
  }
}

TEST_F(EngineErrorsTest, AnAdoptedDiskMustHaveTheSize) {
  const auto image = MUST(machine_.directory->open("data", {.create = true}));
  MUST(image->truncate(size / 2));
  expect_error(machine_.create({.size = size, .block_size = block_size, .adopt = true}),
               ErrorKind::invalid_argument, "fewer");
}

// --- Backings.

TEST_F(EngineErrorsTest, ABackingThatIsNotThereIsSaid) {
  expect_error(machine_.create({.size = size, .block_size = block_size, .backing = "image"}),
               ErrorKind::unsupported, "backing");
  machine_.open_backing = [this](const std::string& /*specification*/) {
    return open_constant(&machine_, size, 'b');
  };
  create({.size = 0, .block_size = block_size, .backing = "image"});
  EXPECT_EQ(machine_.volume->info().size, size);
  expect_block(3, 'b');
  write(3, 'a');
  MUST(machine_.close());
  machine_.open_backing = [this](const std::string& /*specification*/) {
    return open_constant(&machine_, size / 2, 'b');
  };
  expect_error(machine_.open(), ErrorKind::corrupt, "are needed");
  machine_.open_backing = {};
  expect_error(machine_.open(), ErrorKind::unsupported, "backing");
  machine_.open_backing = [this](const std::string& /*specification*/) {
    return open_constant(&machine_, size, 'b');
  };
  MUST(machine_.open());
  expect_block(3, 'a');
  expect_block(4, 'b');
}

}  // namespace
}  // namespace berth::disk
