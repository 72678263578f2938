#include "machine/vm/machine_store.h"

#include <filesystem>
#include <fstream>

#include <sys/stat.h>

#include <gtest/gtest.h>

#include "machine/small_file.h"
#include "machine/temporary_directory.h"
#include "machine/vm/machine_points.h"
#include "machine/volume_directory.h"

namespace berth::machine {
namespace {

namespace fs = std::filesystem;

class MachineStoreTest : public testing::Test {
 protected:
  MachineStoreTest() { fs::create_directories(state_.volumes()); }

  MachineRecord record_of(const std::string& name) const {
    MachineRecord record{.id = SystemRandom().id(), .created_at = "2026-01-01T00:00:00Z"};
    record.specification.name = name;
    record.specification.memory = std::uint64_t{256} << 20;
    record.disks.push_back(
        {.node = "disk-root", .volume = own_volume_name(name, "root"), .own = true});
    complete(record.specification, record.id);
    return record;
  }

  /// A directory in the place of the volume that would have been made.
  void make_volume(const std::string& name) const {
    fs::create_directories(state_.volume(name));
    std::ofstream(state_.volume(name) + "/map") << "map";
  }

  MachineRecord make(const std::string& name) {
    auto claim = MUST(store_.claim(name));
    const MachineRecord record = record_of(name);
    MUST(claim.plan({record.disks[0].volume}));
    make_volume(record.disks[0].volume);
    return MUST(claim.publish(record));
  }

  TemporaryDirectory directory_;
  StateLayout state_{directory_.path()};
  MachineStore store_{directory_.path()};
};

TEST_F(MachineStoreTest, AMachineIsThereWithItsDisksInItAndAsVolumes) {
  const MachineRecord made = make("web");
  EXPECT_TRUE(path_exists(state_.machine_disk("web", "root") + "/map"));
  EXPECT_TRUE(fs::is_symlink(state_.volume("web.root")));
  EXPECT_TRUE(fs::exists(state_.volume("web.root") + "/map"));
  const MachineRecord found = MUST(store_.record("web"));
  EXPECT_EQ(found.id, made.id);
  EXPECT_EQ(found.disks, made.disks);
  EXPECT_EQ(found.specification, made.specification);
  EXPECT_EQ(MUST(store_.list()).size(), 1U);
}

TEST_F(MachineStoreTest, EachMachineHasAUserOfItsOwn) {
  EXPECT_NE(make("one").uid, make("two").uid);
}

TEST_F(MachineStoreTest, WhatWasNotPublishedGoesWithTheVolumesThatWereMadeForIt) {
  {
    auto claim = MUST(store_.claim("web"));
    MUST(claim.plan({"web.root"}));
    make_volume("web.root");
    EXPECT_EQ(store_.claim("web").error().kind(), ErrorKind::in_use);
  }
  EXPECT_FALSE(path_exists(state_.volume("web.root")));
  EXPECT_TRUE(fs::is_empty(state_.machines()));
}

TEST_F(MachineStoreTest, ALeftoverOfADeadProcessIsClearedByTheNextClaim) {
  fs::create_directories(state_.machines() + "/.creating-web/disks");
  MUST(write_small_file(state_.machines() + "/.creating-web/plan.json",
                        R"(["web.root", "../../escape"])"));
  make_volume("web.root");
  make("other");
  EXPECT_FALSE(path_exists(state_.volume("web.root")));
  EXPECT_FALSE(path_exists(state_.machines() + "/.creating-web"));
}

TEST_F(MachineStoreTest, ANameThatIsTakenIsRefused) {
  make("web");
  EXPECT_EQ(store_.claim("web").error().kind(), ErrorKind::already_exists);
  EXPECT_EQ(store_.claim("../web").error().kind(), ErrorKind::invalid_argument);
  EXPECT_EQ(store_.claim(std::string(machine_name_length_max + 1, 'a')).error().kind(),
            ErrorKind::invalid_argument);
}

TEST_F(MachineStoreTest, LinksThatAreMissingAreMendedAndThoseThatLeadNowhereGo) {
  make("web");
  fs::remove(state_.volume("web.root"));
  fs::create_symlink("../machines/gone/disks/root", state_.volume("gone.root"));
  MUST(store_.mend_links());
  EXPECT_TRUE(fs::exists(state_.volume("web.root") + "/map"));
  EXPECT_FALSE(path_exists(state_.volume("gone.root")));
}

TEST_F(MachineStoreTest, RemovedNothingOfItIsLeft) {
  make("web");
  MUST(store_.remove("web"));
  EXPECT_TRUE(fs::is_empty(state_.machines()));
  EXPECT_TRUE(fs::is_empty(state_.volumes()));
  EXPECT_EQ(store_.record("web").error().kind(), ErrorKind::not_found);
}

TEST_F(MachineStoreTest, StateIsRemembered) {
  make("web");
  EXPECT_FALSE(MUST(store_.state("web")).running);
  MUST(store_.save_state("web",
                         {.running = true, .suspended = true, .last_end = "why", .clean = true}));
  const MachineState state = MUST(store_.state("web"));
  EXPECT_TRUE(state.running && state.suspended && state.clean && !state.crashed);
  EXPECT_EQ(state.last_end, "why");
}

TEST_F(MachineStoreTest, ARecordThatIsNoneIsAnErrorWithItsPath) {
  make("web");
  const std::string path = state_.machine("web") + "/machine.json";
  for (const char* text : {"{}", "[]", "no json", R"({"format": "berth-machine", "version": 1})",
                           R"({"format": "berth-machine", "version": 99})"}) {
    MUST(write_small_file(path, text));
    const auto record = store_.record("web");
    ASSERT_FALSE(record) << text;
    EXPECT_TRUE(record.error().message().contains(path)) << record.error().message();
  }
}

TEST_F(MachineStoreTest, ADiskSurvivesItsJson) {
  const AttachedDisk disk{.node = "disk-a",
                          .socket = "/run/a",
                          .export_name = "a",
                          .read_only = true,
                          .kind = AttachedDisk::Kind::seed,
                          .slot = 7};
  EXPECT_EQ(MUST(decode_attached_disk(encode(disk))), disk);
  EXPECT_FALSE(
      decode_attached_disk({{"node", "x"}, {"socket", "y"}, {"export", "z"}, {"kind", "tape"}}));
}

// --- Checkpoints and reference points.

TEST_F(MachineStoreTest, ACheckpointThatGoesLeavesItsChildrenToItsParent) {
  make("web");
  const MachinePoints points(state_, "web");
  std::string parent;
  for (const char* name : {"a", "b", "c"}) {
    MUST(points.save(MachineCheckpoint{.name = name,
                                       .phase = MachineCheckpoint::Phase::whole,
                                       .parent = parent,
                                       .created_at = std::string("2026-01-01T00:00:0") + name}));
    parent = name;
  }
  MUST(points.set_current("b"));
  MUST(points.remove_checkpoint("b"));
  const auto left = MUST(points.checkpoints());
  ASSERT_EQ(left.size(), 2U);
  EXPECT_EQ(left[1].name, "c");
  EXPECT_EQ(left[1].parent, "a");
  EXPECT_EQ(points.current(), "a");
  MUST(points.remove_checkpoint("a"));
  EXPECT_EQ(points.current(), "");
  EXPECT_EQ(points.checkpoint("a").error().kind(), ErrorKind::not_found);
}

TEST_F(MachineStoreTest, APointSurvivesItsFile) {
  const MachineRecord machine = make("web");
  const MachinePoints points(state_, "web");
  const MachineCheckpoint checkpoint{.name = "here",
                                     .phase = MachineCheckpoint::Phase::converting,
                                     .created_at = "2026-01-01T00:00:00Z",
                                     .consistency = Consistency::filesystem,
                                     .reason = "a hook refused",
                                     .memory = true,
                                     .stamp = {.qemu = "7.2.22", .memory = 1 << 20, .cpus = 3},
                                     .disks = machine.disks,
                                     .frozen_us = 1234,
                                     .refpoint = "there"};
  MUST(points.save(checkpoint));
  const MachineCheckpoint found = MUST(points.checkpoint("here"));
  EXPECT_EQ(found.phase, checkpoint.phase);
  EXPECT_EQ(found.consistency, checkpoint.consistency);
  EXPECT_EQ(found.stamp, checkpoint.stamp);
  EXPECT_EQ(found.disks, checkpoint.disks);
  EXPECT_EQ(found.frozen_us, 1234);
  EXPECT_EQ(found.refpoint, "there");

  const Id128 nonce = SystemRandom().id();
  MUST(points.save(MachineRefpoint{
      .name = "sunday",
      .created_at = "",
      .parts = {{.disk = "root", .volume = "web.root", .epoch = 9, .nonce = nonce}}}));
  const auto refpoints = MUST(points.refpoints());
  ASSERT_EQ(refpoints.size(), 1U);
  EXPECT_EQ(refpoints[0].parts[0].nonce, nonce);
  MUST(points.remove_refpoint("sunday"));
  EXPECT_EQ(points.remove_refpoint("sunday").error().kind(), ErrorKind::not_found);
}

TEST_F(MachineStoreTest, ARevertThatWasCutShortIsKnown) {
  make("web");
  const MachinePoints points(state_, "web");
  EXPECT_EQ(points.reverting(), "");
  MUST(points.set_reverting("here"));
  EXPECT_EQ(points.reverting(), "here");
  MUST(points.set_reverting(""));
  EXPECT_EQ(points.reverting(), "");
}

}  // namespace
}  // namespace berth::machine
