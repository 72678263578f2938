#include "machine/volume_store.h"

#include <filesystem>
#include <thread>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/uring_file.h"
#include "async/uring_loop.h"
#include "base/fd.h"
#include "base/units.h"
#include "machine/live_store.h"
#include "machine/temporary_directory.h"
#include "machine/volume_claim.h"
#include "machine/volume_directory.h"

namespace berth::machine {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class VolumeStoreTest : public testing::Test {
 protected:
  ~VolumeStoreTest() override { release_live_store({directory_ / "run"}, "none"); }

  ErrorKind kind_of(const VolumeCreateRequest& request) {
    const auto created = store_.create(request);
    EXPECT_FALSE(created);
    return created ? ErrorKind::internal : created.error().kind();
  }
  std::string data_of_volume(const std::string& name) {
    return read_text(state_.volume(name) + "/data");
  }
  std::vector<std::string> names() { return names_in(state_.volumes()); }

  TemporaryDirectory directory_;
  StateLayout state_{directory_ / "state"};
  VolumeStore store_{state_.state_dir, directory_ / "run"};
};

TEST_F(VolumeStoreTest, MakesListsAndRemovesVolumes) {
  EXPECT_THAT(store_.list().value(), IsEmpty());
  const auto made = store_.create({.name = "b", .size = 8 * MiB, .block_size = 4096});
  ASSERT_TRUE(made) << made.error().message();
  EXPECT_EQ(made->size, 8 * MiB);
  EXPECT_EQ(made->block_size, 4096U);
  EXPECT_EQ(made->id.size(), 36U);
  ASSERT_TRUE(store_.create({.name = "a", .size = 4 * MiB}));
  const auto list = store_.list().value();
  ASSERT_EQ(list.size(), 2U);
  EXPECT_EQ(list[0].name, "a");
  EXPECT_EQ(list[1], *made);
  EXPECT_EQ(fs::file_size(state_.volume("b") + "/data"), 8 * MiB);
  ASSERT_TRUE(store_.remove("b"));
  EXPECT_THAT(names(), ElementsAre("a"));
  EXPECT_EQ(store_.summary("b").error().kind(), ErrorKind::not_found);
  EXPECT_EQ(store_.remove("b").error().kind(), ErrorKind::not_found);
}

TEST_F(VolumeStoreTest, RefusesWhatCannotBeMade) {
  EXPECT_EQ(kind_of({.name = "../a", .size = 1 * MiB}), ErrorKind::invalid_argument);
  EXPECT_EQ(kind_of({.name = ".hidden", .size = 1 * MiB}), ErrorKind::invalid_argument);
  EXPECT_EQ(kind_of({.name = std::string(65, 'a'), .size = 1 * MiB}), ErrorKind::invalid_argument);
  EXPECT_EQ(kind_of({.name = "a"}), ErrorKind::invalid_argument);
  EXPECT_EQ(kind_of({.name = "a", .size = 1 * MiB, .block_size = 5000}),
            ErrorKind::invalid_argument);
  EXPECT_EQ(kind_of({.name = "a", .size = 1 * MiB, .backing = "/a", .import = "/b"}),
            ErrorKind::invalid_argument);
  EXPECT_EQ(kind_of({.name = "a", .backing = directory_ / "none"}), ErrorKind::not_found);
  EXPECT_EQ(kind_of({.name = "a", .backing = "volume:none@c"}), ErrorKind::not_found);
  EXPECT_THAT(names(), IsEmpty());
}

TEST_F(VolumeStoreTest, ANameIsTakenOnce) {
  ASSERT_TRUE(store_.create({.name = "a", .size = 1 * MiB}));
  EXPECT_EQ(kind_of({.name = "a", .size = 2 * MiB}), ErrorKind::already_exists);
  EXPECT_EQ(store_.summary("a")->size, 1 * MiB);
  EXPECT_THAT(names(), ElementsAre("a"));
}

TEST_F(VolumeStoreTest, OfTwoAtOnceOneGetsTheName) {
  std::atomic<int> made = 0;
  {
    std::vector<std::jthread> makers;
    for (int i = 0; i < 4; ++i) {
      makers.emplace_back([&] {
        VolumeStore store(state_.state_dir, directory_ / "run");
        const auto created = store.create({.name = "same", .size = 1 * MiB});
        if (created) ++made;
      });
      makers.emplace_back([&, i] {
        VolumeStore store(state_.state_dir, directory_ / "run");
        EXPECT_TRUE(store.create({.name = "own-" + std::to_string(i), .size = 1 * MiB}));
      });
    }
  }
  EXPECT_EQ(made, 1);
  EXPECT_THAT(names(), ElementsAre("own-0", "own-1", "own-2", "own-3", "same"));
}

TEST_F(VolumeStoreTest, AnImportedFileIsCopiedSparsely) {
  const std::string file = directory_ / "disk.raw";
  const std::string content =
      std::string(1 * MiB, 'a') + std::string(6 * MiB, '\0') + std::string(1000, 'z');
  write_text(file, content);
  ASSERT_EQ(kind_of({.name = "small", .size = 4 * MiB, .import = file}),
            ErrorKind::invalid_argument);
  std::vector<ControlProgress> progress;
  const auto made =
      store_.create({.name = "a", .import = file},
                    {.report = [&](const ControlProgress& now) { progress.push_back(now); }});
  ASSERT_TRUE(made) << made.error().message();
  EXPECT_EQ(made->size, round_up(content.size(), 512));
  EXPECT_EQ(data_of_volume("a"), content + std::string(made->size - content.size(), '\0'));
  struct stat status{};
  ASSERT_EQ(::stat((state_.volume("a") + "/data").c_str(), &status), 0);
  EXPECT_LE(status.st_blocks * 512, 2 * static_cast<std::int64_t>(MiB));
  EXPECT_EQ(read_text(file), content);
  ASSERT_FALSE(progress.empty());
  EXPECT_EQ(progress.back().total, content.size());

  const auto larger = store_.create({.name = "larger", .size = 16 * MiB, .import = file});
  ASSERT_TRUE(larger);
  EXPECT_EQ(data_of_volume("larger").size(), 16 * MiB);
}

TEST_F(VolumeStoreTest, AnImportedImageOfAnotherFormatIsConverted) {
  const std::string raw = directory_ / "raw";
  const std::string image = directory_ / "image.vmdk";
  write_text(raw, std::string(2 * MiB, 'v') + std::string(2 * MiB, '\0'));
  ASSERT_EQ(std::system(("qemu-img convert -q -f raw -O vmdk " + raw + " " + image).c_str()), 0);
  const auto made = store_.create({.name = "a", .import = image});
  ASSERT_TRUE(made) << made.error().message();
  EXPECT_EQ(data_of_volume("a"), read_text(raw));
}

TEST_F(VolumeStoreTest, ACancelledImportLeavesNothing) {
  const std::string file = directory_ / "disk.raw";
  write_text(file, std::string(20 * MiB, 'a'));
  std::stop_source stop;
  const auto made = store_.create(
      {.name = "a", .import = file},
      {.report = [&](const ControlProgress&) { stop.request_stop(); }, .stop = stop.get_token()});
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().kind(), ErrorKind::cancelled);
  EXPECT_THAT(names(), IsEmpty());
}

TEST_F(VolumeStoreTest, AnAdoptedFileStaysWhereItIs) {
  const std::string file = directory_ / "disk.raw";
  write_text(file, std::string(4 * MiB, 'a'));
  const auto made = store_.create({.name = "a", .adopt = file});
  ASSERT_TRUE(made) << made.error().message();
  EXPECT_EQ(made->size, 4 * MiB);
  EXPECT_EQ(made->adopted, file);
  EXPECT_TRUE(fs::is_symlink(state_.volume("a") + "/data"));
  ASSERT_TRUE(store_.remove("a"));
  EXPECT_EQ(fs::file_size(file), 4 * MiB);
}

TEST_F(VolumeStoreTest, WhatIsAVolumeAlreadyIsNotAdoptedAgain) {
  const std::string file = directory_ / "disk.raw";
  write_text(file, std::string(4 * MiB, 'a'));
  const std::string alias = directory_ / "alias.raw";
  fs::create_symlink(file, alias);
  ASSERT_TRUE(store_.create({.name = "a", .adopt = file}));
  for (const std::string& path : {file, alias, state_.volume("a") + "/data"}) {
    const auto again = store_.create({.name = "b", .adopt = path});
    ASSERT_FALSE(again) << path;
    EXPECT_EQ(again.error().kind(), ErrorKind::in_use);
    EXPECT_THAT(again.error().message(), HasSubstr("the volume 'a'"));
  }
  EXPECT_THAT(names(), ElementsAre("a"));
  ASSERT_TRUE(store_.remove("a"));
  EXPECT_TRUE(store_.create({.name = "b", .adopt = file}));
}

TEST_F(VolumeStoreTest, OnlyRawDisksAreAdopted) {
  EXPECT_EQ(kind_of({.name = "a", .adopt = "relative"}), ErrorKind::invalid_argument);
  EXPECT_EQ(kind_of({.name = "a", .adopt = directory_ / "none"}), ErrorKind::not_found);
  EXPECT_EQ(kind_of({.name = "a", .adopt = "/dev/null"}), ErrorKind::invalid_argument);
  const std::string image = directory_ / "image.vhdx";
  write_text(image, "vhdxfile" + std::string(1 * MiB, '\0'));
  EXPECT_EQ(kind_of({.name = "a", .adopt = image}), ErrorKind::invalid_argument);
}

TEST_F(VolumeStoreTest, ABackingIsKeptAsItsExactSpecification) {
  const std::string file = directory_ / "base.raw";
  write_text(file, std::string(2 * MiB, 'b'));
  const auto made = store_.create({.name = "a", .backing = file});
  ASSERT_TRUE(made) << made.error().message();
  EXPECT_EQ(made->backing, "file:" + file);
  EXPECT_EQ(made->size, 2 * MiB);
  EXPECT_EQ(store_.create({.name = "larger", .size = 4 * MiB, .backing = file})->size, 4 * MiB);
}

TEST_F(VolumeStoreTest, WhatDeadProcessesLeftIsClearedAway) {
  ASSERT_TRUE(store_.create({.name = "a", .size = 1 * MiB}));
  fs::create_directories(creating_path(state_, "b") + "/holds");
  fs::create_directories(removing_path(state_, "c") + "/holds");
  ASSERT_TRUE(store_.create({.name = "b", .size = 1 * MiB}));
  EXPECT_THAT(names(), ElementsAre("a", "b"));
}

TEST_F(VolumeStoreTest, AVolumeInTheMakingIsLeftAlone) {
  fs::create_directories(state_.volumes());
  const auto claim = VolumeClaim::take(state_, "b");
  ASSERT_TRUE(claim);
  EXPECT_EQ(kind_of({.name = "b", .size = 1 * MiB}), ErrorKind::in_use);
  ASSERT_TRUE(store_.create({.name = "a", .size = 1 * MiB}));
  EXPECT_TRUE(path_exists(creating_path(state_, "b")));
}

TEST_F(VolumeStoreTest, AVolumeThatIsLockedCannotBeRemoved) {
  ASSERT_TRUE(store_.create({.name = "a", .size = 1 * MiB}));
  {
    const Fd data(::open((state_.volume("a") + "/data").c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_EQ(::flock(data.get(), LOCK_EX), 0);
    EXPECT_EQ(store_.remove("a").error().kind(), ErrorKind::in_use);
  }
  EXPECT_TRUE(store_.remove("a"));
}

TEST_F(VolumeStoreTest, AVolumeThatAnotherStandsOnCannotBeRemoved) {
  ASSERT_TRUE(store_.create({.name = "base", .size = 1 * MiB}));
  ASSERT_TRUE(store_.create({.name = "clone", .size = 1 * MiB}));
  ASSERT_TRUE(pin(state_, "base", "gold", "clone"));
  EXPECT_THAT(dependents_of(state_, "base", "gold"), ElementsAre("clone"));
  EXPECT_THAT(dependents_of(state_, "base", "other"), IsEmpty());
  const auto refused = store_.remove("base");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::in_use);
  EXPECT_THAT(refused.error().message(), HasSubstr("clone"));
  ASSERT_TRUE(store_.remove("clone"));
  EXPECT_THAT(dependents_of(state_, "base", ""), IsEmpty());
  EXPECT_TRUE(store_.remove("base"));
}

TEST_F(VolumeStoreTest, ASummaryThatSomebodyHasSpoiledSaysLess) {
  ASSERT_TRUE(store_.create({.name = "a", .size = 1 * MiB}));
  for (const char* text : {"", "{", "[]", R"({"size": -1, "id": 5, "backing": null})"}) {
    write_text(state_.volume("a") + "/volume.json", text);
    const auto summary = store_.summary("a");
    ASSERT_TRUE(summary);
    EXPECT_EQ(summary->name, "a");
    EXPECT_EQ(summary->size, 0U);
  }
}

}  // namespace
}  // namespace berth::machine
