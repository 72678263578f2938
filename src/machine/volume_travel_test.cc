// Volumes that leave one host as a directory and come to another one: what arrives, and what does
// not.
#include "machine/volume_travel.h"

#include <chrono>
#include <filesystem>
#include <stop_token>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/uring_loop.h"
#include "machine/live_store.h"
#include "machine/temporary_directory.h"
#include "machine/volume_directory.h"

namespace berth::machine {
namespace {

namespace fs = std::filesystem;
using disk::Arrival;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::uint64_t size = 64 * MiB;

struct stat status_of(const std::string& path) {
  struct stat status{};
  EXPECT_EQ(::lstat(path.c_str(), &status), 0) << path;
  return status;
}
std::int64_t modified_ns(const std::string& path) {
  const struct stat status = status_of(path);
  return status.st_mtim.tv_sec * 1'000'000'000 + status.st_mtim.tv_nsec;
}

/// Two hosts; the first one has the volume "a".
class VolumeTravelTest : public testing::Test {
 protected:
  VolumeTravelTest() {
    const std::string source = directory_ / "source";
    write_text(source, std::string(3 * MiB, 'x'));
    fs::resize_file(source, size);
    made_ = here_.create({.name = "a", .import = source}).value();
  }
  ~VolumeTravelTest() override {
    for (const char* run : {"run", "there-run"}) release_live_store({directory_ / run}, "a");
  }

  static void expect_refused(const auto& result, ErrorKind kind, const std::string& why) {
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind(), kind) << result.error().message();
    EXPECT_THAT(result.error().message(), HasSubstr(why));
  }
  Result<ImportedVolume> import(const std::string& from, Arrival arrival = Arrival::moved,
                                const std::string& name = "a") {
    return there_.import_directory({.name = name, .directory = from, .arrival = arrival});
  }
  std::string exported() {
    const std::string to = directory_ / "exported";
    const auto done = here_.export_directory("a", to);
    EXPECT_TRUE(done) << done.error().message();
    return to;
  }
  std::vector<std::string> names_there() { return names_in(there_state_.volumes()); }

  TemporaryDirectory directory_;
  StateLayout here_state_{directory_ / "state"};
  StateLayout there_state_{directory_ / "there"};
  VolumeStore here_{here_state_.state_dir, directory_ / "run"};
  VolumeStore there_{there_state_.state_dir, directory_ / "there-run"};
  VolumeSummary made_;
};

TEST_F(VolumeTravelTest, AnExportIsTheWholeDirectoryWithItsHolesTimesAndModes) {
  const std::string from = here_state_.volume("a");
  ASSERT_EQ(::chmod((from + "/data").c_str(), 0640), 0);
  write_text(from + "/notes.txt", "of somebody");
  const std::string to = exported();
  EXPECT_THAT(names_in(to), ElementsAre("data", "holds", "map", "volume.json"));
  EXPECT_EQ(read_text(to + "/data"), read_text(from + "/data"));
  EXPECT_EQ(read_text(to + "/map"), read_text(from + "/map"));
  for (const char* name : {"data", "map"}) {
    EXPECT_EQ(modified_ns(to + '/' + name), modified_ns(from + '/' + name));
    EXPECT_EQ(status_of(to + '/' + name).st_mode, status_of(from + '/' + name).st_mode);
  }
  EXPECT_LT(status_of(to + "/data").st_blocks * 512, 4 * MiB);
  EXPECT_LT(status_of(to + "/map").st_blocks * 512, 4 * MiB);
  EXPECT_EQ(status_of(to).st_mode, status_of(from).st_mode);
}

TEST_F(VolumeTravelTest, AMovedVolumeIsTheSameOneOnTheOtherHost) {
  const std::string from = exported();
  const auto arrived = import(from);
  ASSERT_TRUE(arrived) << arrived.error().message();
  EXPECT_EQ(arrived->summary, made_);
  EXPECT_EQ(there_.summary("a").value(), made_);
  EXPECT_EQ(read_text(there_state_.volume("a") + "/data"), read_text(from + "/data"));
  EXPECT_EQ(status_of(there_state_.volume("a")).st_mode & 0777U, 0700U);
  // What intents and small records need is allocated, as it is in a volume that was made here.
  const Fd map(::open((there_state_.volume("a") + "/map").c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(::lseek(map.get(), 64 * KiB, SEEK_HOLE), 576 * KiB);
  EXPECT_EQ(::lseek(map.get(), 64 * MiB, SEEK_DATA), 64 * MiB);
}

TEST_F(VolumeTravelTest, ACopiedVolumeIsAnotherOneUnderAnyName) {
  const std::string from = exported();
  const auto first = import(from, Arrival::copied, "b");
  const auto second = import(from, Arrival::copied, "c");
  ASSERT_TRUE(first && second);
  EXPECT_NE(first->summary.id, made_.id);
  EXPECT_NE(first->summary.id, second->summary.id);
  EXPECT_EQ(first->summary.name, "b");
  EXPECT_EQ(there_.summary("b").value(), first->summary);
  EXPECT_THAT(names_there(), ElementsAre("b", "c"));
}

TEST_F(VolumeTravelTest, AVolumeOfTheSameHostIsCopiedAndNotMoved) {
  const std::string from = here_state_.volume("a");
  const auto refused = here_.import_directory({.name = "b", .directory = from});
  expect_refused(refused, ErrorKind::precondition, "'a' of this host");
  expect_refused(here_.import_directory({.name = "b", .directory = exported()}),
                 ErrorKind::precondition, "'a' of this host is the same");
  const auto copied =
      here_.import_directory({.name = "b", .directory = from, .arrival = Arrival::copied});
  ASSERT_TRUE(copied) << copied.error().message();
  EXPECT_NE(copied->summary.id, made_.id);
  EXPECT_THAT(names_in(here_state_.volumes()), ElementsAre("a", "b"));
}

TEST_F(VolumeTravelTest, ADirectoryThatLiesAmongTheVolumesAlreadyStaysThere) {
  fs::create_directories(there_state_.volumes());
  fs::rename(exported(), there_state_.volume("a"));
  const std::uint64_t inode = status_of(there_state_.volume("a") + "/data").st_ino;
  for (int i = 0; i < 2; ++i) {
    const auto arrived = import(there_state_.volume("a"));
    ASSERT_TRUE(arrived) << arrived.error().message();
    EXPECT_EQ(arrived->summary, made_);
  }
  EXPECT_EQ(status_of(there_state_.volume("a") + "/data").st_ino, inode);
  ASSERT_TRUE(import(there_state_.volume("a"), Arrival::copied));
  EXPECT_NE(there_.summary("a")->id, made_.id);
}

TEST_F(VolumeTravelTest, ADirectoryCanBecomeTheVolumesByARename) {
  const std::string from = exported();
  const std::uint64_t inode = status_of(from + "/data").st_ino;
  fs::create_directories(from + "/pins/c");
  write_text(from + "/pins/c/clone", "");
  const auto arrived = there_.import_directory(
      {.name = "a", .directory = from, .arrival = Arrival::moved, .move_files = true});
  ASSERT_TRUE(arrived) << arrived.error().message();
  EXPECT_EQ(status_of(there_state_.volume("a") + "/data").st_ino, inode);
  EXPECT_THAT(names_in(there_state_.volume("a")),
              ElementsAre("data", "holds", "map", "volume.json"));
  EXPECT_FALSE(path_exists(from));
}

TEST_F(VolumeTravelTest, ANameThatIsTakenIsRefusedBeforeAnythingIsCopied) {
  const std::string from = exported();
  ASSERT_TRUE(there_.create({.name = "a", .size = MiB}));
  expect_refused(import(from), ErrorKind::already_exists, "'a'");
  expect_refused(there_.import_directory({.name = "a", .directory = from, .move_files = true}),
                 ErrorKind::already_exists, "'a'");
  EXPECT_THAT(names_there(), ElementsAre("a"));
  EXPECT_TRUE(path_exists(from + "/data"));
  expect_refused(here_.export_directory("a", from), ErrorKind::already_exists, from);
  expect_refused(here_.export_directory("a", here_state_.volume("b")), ErrorKind::invalid_argument,
                 "volume import");
  expect_refused(here_.export_directory("a", directory_ / "none/b"), ErrorKind::not_found, "none");
  expect_refused(here_.export_directory("a", "relative"), ErrorKind::invalid_argument, "absolute");
  expect_refused(here_.export_directory("none", directory_ / "x"), ErrorKind::not_found, "none");
}

// --- What must not come in.

TEST_F(VolumeTravelTest, NothingThatLeadsOutOfTheDirectoryComesIn) {
  const std::string from = exported();
  const auto expect_bad = [&](const std::string& why, ErrorKind kind) {
    for (const Arrival arrival : {Arrival::moved, Arrival::copied}) {
      for (const bool moves : {false, true}) {
        expect_refused(
            there_.import_directory(
                {.name = "a", .directory = from, .arrival = arrival, .move_files = moves}),
            kind, why);
      }
    }
    EXPECT_THAT(names_there(), IsEmpty());
  };
  for (const char* name : {"/extra", "/holds/0000000000000001", "/holds/x"}) {
    fs::create_symlink("/etc/passwd", from + name);
    expect_bad("link, to '/etc/passwd'", ErrorKind::invalid_argument);
    fs::remove(from + name);
    ASSERT_EQ(::mkfifo((from + name).c_str(), 0600), 0);
    expect_bad("neither a file nor a directory", ErrorKind::invalid_argument);
    fs::remove(from + name);
  }
  for (const char* name : {"/data", "/map", "/volume.json", "/holds"}) {
    const std::string aside = directory_ / "aside";
    fs::rename(from + name, aside);
    fs::create_symlink(aside, from + name);
    const bool adopted = std::string_view(name) == "/data";
    expect_bad(adopted ? "was adopted" : "is a link",
               adopted ? ErrorKind::precondition : ErrorKind::invalid_argument);
    fs::remove(from + name);
    if (std::string_view(name) == "/data" || std::string_view(name) == "/map")
      expect_bad("no volume's directory", ErrorKind::invalid_argument);
    fs::rename(aside, from + name);
  }
  EXPECT_TRUE(import(from));
}

TEST_F(VolumeTravelTest, AFileWithAnotherNameElsewhereIsCopiedAndNotTakenWhereItIs) {
  const std::string from = exported();
  fs::create_hard_link(from + "/data", directory_ / "other-name");
  expect_refused(there_.import_directory({.name = "a", .directory = from, .move_files = true}),
                 ErrorKind::precondition, "hard link");
  EXPECT_TRUE(import(from));
}

TEST_F(VolumeTravelTest, AnAdoptedDiskDoesNotTravel) {
  const std::string disk = directory_ / "disk";
  write_text(disk, std::string(MiB, 'd'));
  ASSERT_TRUE(here_.create({.name = "b", .adopt = disk}));
  expect_refused(here_.export_directory("b", directory_ / "b"), ErrorKind::precondition, disk);
  EXPECT_FALSE(path_exists(directory_ / "b"));
}

TEST_F(VolumeTravelTest, AChangedDataFileIsToldApart) {
  const std::string from = exported();
  write_text(from + "/data", std::string(size, 'y'));
  expect_refused(import(from), ErrorKind::precondition, "time of modification");
  EXPECT_THAT(names_there(), IsEmpty());
  EXPECT_TRUE(import(from, Arrival::copied));
}

TEST_F(VolumeTravelTest, ABackingMustBeAtItsPlaceAndNobodyElsesDisk) {
  const std::string backing = directory_ / "backing";
  fs::copy(directory_ / "source", backing);
  ASSERT_TRUE(here_.create({.name = "b", .backing = "file:" + backing}));
  const std::string from = directory_ / "b";
  ASSERT_TRUE(here_.export_directory("b", from));
  EXPECT_TRUE(import(from, Arrival::moved, "b"));
  ASSERT_TRUE(there_.remove("b"));
  fs::resize_file(backing, MiB);
  expect_refused(import(from, Arrival::moved, "b"), ErrorKind::precondition, "are needed");
  fs::remove(backing);
  expect_refused(import(from, Arrival::moved, "b"), ErrorKind::precondition, backing);
  EXPECT_THAT(names_there(), IsEmpty());
  // The path leads into another volume of the host, whoever has written it there.
  ASSERT_TRUE(there_.create({.name = "secret", .size = size}));
  fs::create_symlink(there_state_.volume("secret") + "/data", backing);
  expect_refused(import(from, Arrival::moved, "b"), ErrorKind::precondition, "of this host");
  EXPECT_THAT(names_there(), ElementsAre("secret"));
}

// --- Ends in the middle.

TEST_F(VolumeTravelTest, WhatIsCancelledLeavesNothing) {
  const std::string from = exported();
  std::stop_source stop;
  const VolumeJob job{.report = [&stop](const ControlProgress&) { stop.request_stop(); },
                      .stop = stop.get_token()};
  expect_refused(here_.export_directory("a", directory_ / "again", job), ErrorKind::cancelled,
                 "export");
  expect_refused(there_.import_directory({.name = "a", .directory = from}, job),
                 ErrorKind::cancelled, "import");
  EXPECT_THAT(names_there(), IsEmpty());
  EXPECT_THAT(names_in(here_state_.volumes()), ElementsAre("a"));
  EXPECT_THAT(directory_.names(), Not(testing::Contains(HasSubstr("again"))));
}

TEST_F(VolumeTravelTest, WhatADeadExportLeftGoesWithTheNextCommand) {
  const std::string left = directory_ / ".b.berth-export";
  {
    const auto lock = claim_directory(left, "");
    ASSERT_TRUE(lock);
    ASSERT_TRUE(mark_for_clearing(here_state_, left));
    write_text(left + "/data", "unfinished");
    clear_leftovers(here_state_);
    EXPECT_TRUE(path_exists(left));  // it is at work
    expect_refused(here_.export_directory("a", directory_ / "b"), ErrorKind::in_use, "already");
    clear_leftovers(here_state_);
  }
  clear_leftovers(here_state_);
  EXPECT_FALSE(path_exists(left));
  EXPECT_THAT(names_in(here_state_.volumes()), ElementsAre("a"));
  // And without the mark, when the next one wants the same place.
  fs::create_directory(left);
  write_text(left + "/data", "unfinished");
  ASSERT_TRUE(here_.export_directory("a", directory_ / "b"));
  EXPECT_FALSE(path_exists(left));
}

}  // namespace
}  // namespace berth::machine
