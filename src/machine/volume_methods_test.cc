#include "machine/volume_methods.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/socket.h"
#include "machine/control_client.h"
#include "machine/control_messages.h"
#include "machine/fake_volume.h"
#include "machine/temporary_directory.h"
#include "machine/volume_directory.h"
#include "machine/volume_store.h"

namespace berth::machine {
namespace {

using testing::HasSubstr;
using namespace std::chrono_literals;

constexpr std::uint64_t block = FakeVolume::block_size;

class VolumeMethodsTest : public testing::Test {
 protected:
  VolumeMethodsTest() {
    std::filesystem::create_directories(state_.volume("disk"));
    methods_.open(volume_);
    server_.serve(SocketListener::listen_unix(*loop_, directory_ / "control").value());
    client_.emplace(run(connect_unix(*loop_, directory_ / "control", 5s)).value());
  }
  ~VolumeMethodsTest() override {
    run(methods_.close());
    run(server_.close(1s));
  }

  template <typename T>
  T run(Task<T> task) {
    return loop_->run_until_complete(std::move(task));
  }
  Result<Json> call(const std::string& method, Json params = Json::object()) {
    return run(client_->call(method, std::move(params)));
  }
  Task<> pause() { co_await loop_->sleep(1ms); }
  ErrorKind kind_of(const std::string& method, Json params = Json::object()) {
    const auto result = call(method, std::move(params));
    EXPECT_FALSE(result) << format_json(*result);
    return result ? ErrorKind::internal : result.error().kind();
  }
  void write(std::uint64_t first_block, std::uint64_t count) {
    const std::vector<std::byte> data(count * block, std::byte{1});
    ASSERT_TRUE(run(volume_.write(first_block * block, data)));
  }

  TemporaryDirectory directory_;
  StateLayout state_{directory_ / "state"};
  std::unique_ptr<UringLoop> loop_ = UringLoop::create().value();
  FakeVolume volume_{64 * block};
  std::shared_ptr<CheckpointReaders> readers_ = std::make_shared<CheckpointReaders>();
  ControlServer server_{*loop_};
  VolumeMethods methods_{*loop_, server_, {.volume = "disk", .state = state_, .readers = readers_}};
  std::optional<ControlClient> client_;
};

TEST_F(VolumeMethodsTest, TellsWhatTheVolumeIs) {
  const auto info = call("volume.info");
  ASSERT_TRUE(info);
  EXPECT_EQ((*info)["name"], "disk");
  EXPECT_EQ((*info)["size"], 64 * block);
  EXPECT_EQ((*info)["id"].get<std::string>().size(), 36U);
}

TEST_F(VolumeMethodsTest, NothingIsAnsweredWhileTheVolumeIsNotOpen) {
  run(methods_.close());
  EXPECT_EQ(kind_of("volume.info"), ErrorKind::precondition);
  EXPECT_EQ(kind_of("checkpoint.create", {{"name", "c"}}), ErrorKind::precondition);
}

TEST_F(VolumeMethodsTest, ACheckpointComesIsListedAndGoes) {
  const auto outcome =
      call("checkpoint.create", {{"name", "c"}, {"refpoint", "r"}, {"durability", "volatile"}});
  ASSERT_TRUE(outcome) << outcome.error().message();
  EXPECT_EQ((*outcome)["checkpoint"]["durability"], "volatile");
  EXPECT_EQ((*outcome)["refpoint"]["name"], "r");
  EXPECT_EQ(kind_of("checkpoint.create", {{"name", "c"}}), ErrorKind::already_exists);
  EXPECT_EQ((*call("checkpoint.list"))["checkpoints"].size(), 1U);
  ASSERT_TRUE(call("checkpoint.delete", {{"name", "c"}}));
  EXPECT_EQ((*call("checkpoint.list"))["checkpoints"].size(), 0U);
  EXPECT_EQ(kind_of("checkpoint.delete", {{"name", "c"}}), ErrorKind::not_found);
}

TEST_F(VolumeMethodsTest, ACheckpointThatIsReadStays) {
  ASSERT_TRUE(call("checkpoint.create", {{"name", "c"}}));
  VolumeExports exports(volume_, readers_, {.name = "disk"});
  auto opened = run(exports.find("disk@c"));
  ASSERT_TRUE(opened);
  const auto refused = call("checkpoint.delete", {{"name", "c"}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::in_use);
  EXPECT_THAT(refused.error().message(), HasSubstr("NBD"));
  EXPECT_EQ(kind_of("checkpoint.convert", {{"name", "c"}}), ErrorKind::in_use);
  opened->reset();
  EXPECT_TRUE(call("checkpoint.delete", {{"name", "c"}}));
}

TEST_F(VolumeMethodsTest, ACheckpointThatAVolumeStandsOnStays) {
  ASSERT_TRUE(call("checkpoint.create", {{"name", "c"}}));
  std::filesystem::create_directories(state_.volume("clone"));
  ASSERT_TRUE(pin(state_, "disk", "c", "clone"));
  const auto refused = call("checkpoint.delete", {{"name", "c"}});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::in_use);
  EXPECT_THAT(refused.error().message(), HasSubstr("clone"));
  std::filesystem::remove_all(state_.volume("clone"));
  EXPECT_TRUE(call("checkpoint.delete", {{"name", "c"}}));
}

TEST_F(VolumeMethodsTest, AConvertedCheckpointIsAReferencePoint) {
  ASSERT_TRUE(call("checkpoint.create", {{"name", "c"}}));
  EXPECT_EQ(kind_of("checkpoint.convert", {{"name", "c"}, {"refpoint", "bad/name"}}),
            ErrorKind::invalid_argument);
  const auto refpoint = call("checkpoint.convert", {{"name", "c"}, {"refpoint", "r"}});
  ASSERT_TRUE(refpoint);
  EXPECT_EQ((*refpoint)["name"], "r");
  write(3, 2);
  const auto changes = call("changes", {{"since", "r"}, {"nonce", (*refpoint)["nonce"]}});
  ASSERT_TRUE(changes);
  EXPECT_EQ((*changes)["extents"], Json::array({Json::array({3 * block, 2 * block})}));
  EXPECT_EQ((*changes)["complete"], true);
  EXPECT_EQ(kind_of("changes", {{"since", "r"}, {"nonce", Id128{}.to_string()}}),
            ErrorKind::full_backup_required);
  ASSERT_TRUE(call("refpoint.delete", {{"name", "r"}}));
  EXPECT_EQ((*call("refpoint.list"))["refpoints"].size(), 0U);
}

TEST_F(VolumeMethodsTest, ChangesComeInPages) {
  ASSERT_TRUE(call("refpoint.create", {{"name", "r"}}));
  for (std::uint64_t i = 0; i < 10; i += 2) write(i, 1);
  std::uint64_t offset = 0;
  std::size_t extents = 0;
  for (bool complete = false; !complete;) {
    const auto page = call("changes", {{"since", "r"}, {"offset", offset}, {"extents_max", 2}});
    ASSERT_TRUE(page);
    extents += (*page)["extents"].size();
    complete = (*page)["complete"];
    offset = (*page)["next_offset"];
  }
  EXPECT_EQ(extents, 5U);
}

TEST_F(VolumeMethodsTest, ACutInTwoPhases) {
  Id128 group;
  group.bytes[3] = std::byte{9};
  const auto ticket =
      call("cut.begin", {{"checkpoint", "c"}, {"group", group.to_string()}, {"lease_ms", 500}});
  ASSERT_TRUE(ticket);
  const auto outcome = call("cut.commit", *ticket);
  ASSERT_TRUE(outcome);
  EXPECT_EQ((*outcome)["checkpoint"]["provisional"], true);
  ASSERT_TRUE(call("group.settle", {{"group", group.to_string()}, {"committed", true}}));
  EXPECT_EQ((*call("checkpoint.list"))["checkpoints"][0]["provisional"], false);

  const auto aborted = call("cut.begin", {{"checkpoint", "d"}});
  ASSERT_TRUE(call("cut.abort", *aborted));
  EXPECT_EQ(kind_of("cut.commit", *aborted), ErrorKind::timed_out);
}

TEST_F(VolumeMethodsTest, ACutDoesNotOutliveTheClientThatBeganIt) {
  ASSERT_TRUE(call("cut.begin", {{"checkpoint", "mine"}}));
  std::optional<ControlClient> other(run(connect_unix(*loop_, directory_ / "control", 5s)).value());
  ASSERT_TRUE(run(other->call("cut.begin", {{"checkpoint", "early"}})));
  const auto late = run(other->call("cut.begin", {{"checkpoint", "late"}}));
  ASSERT_TRUE(run(other->call("cut.abort", {{"ticket", 2}})));
  ASSERT_EQ(volume_.open_cuts(), 2U);
  other.reset();
  for (int i = 0; i < 5000 && volume_.open_cuts() != 1; ++i) run(pause());
  EXPECT_EQ(volume_.open_cuts(), 1U);  // that of the client which is still there
  EXPECT_EQ(run(client_->call("cut.commit", *late)).error().kind(), ErrorKind::timed_out);
}

TEST_F(VolumeMethodsTest, ResizingIsShownInTheSummary) {
  ASSERT_TRUE(call("volume.resize", {{"size", 128 * block}}));
  EXPECT_EQ((*call("volume.info"))["size"], 128 * block);
  write_text(state_.volume("disk") + "/map", "");
  EXPECT_EQ(VolumeStore(state_.state_dir, directory_.path()).summary("disk")->size, 128 * block);
}

TEST_F(VolumeMethodsTest, ACheckpointIsWrittenToAFile) {
  write(0, 2);
  ASSERT_TRUE(call("checkpoint.create", {{"name", "c"}}));
  const auto outcome = call("checkpoint.export", {{"name", "c"}, {"to", directory_ / "out"}});
  ASSERT_TRUE(outcome) << outcome.error().message();
  EXPECT_EQ((*outcome)["bytes"], 2 * block);
  EXPECT_EQ(std::filesystem::file_size(directory_ / "out"), 64 * block);
  EXPECT_EQ(kind_of("checkpoint.export", {{"name", "c"}, {"to", directory_ / "out"}}),
            ErrorKind::already_exists);
}

TEST_F(VolumeMethodsTest, PopulatingCopiesUntilNothingIsAbsent) {
  volume_.absent_bytes = 100 * MiB;
  const auto outcome = call("volume.populate");
  ASSERT_TRUE(outcome);
  EXPECT_EQ((*outcome)["copied"], 100 * MiB);
  EXPECT_EQ((*call("volume.populate"))["copied"], 0);
}

TEST_F(VolumeMethodsTest, PopulatingKeepsItsRateAndCanBeCancelled) {
  volume_.absent_bytes = 100 * MiB;
  const Instant start = loop_->now();
  const auto id = MUST(run(client_->start("volume.populate", {{"rate", 1 * MiB}})));
  EXPECT_EQ(kind_of("volume.populate"), ErrorKind::in_use);
  ASSERT_TRUE(call("cancel", {{"id", id}}));
  EXPECT_EQ(run(client_->wait(id)).error().kind(), ErrorKind::cancelled);
  const double seconds = std::chrono::duration<double>(loop_->now() - start).count();
  EXPECT_LE(static_cast<double>(100 * MiB - volume_.absent_bytes),
            (seconds + 0.2) * static_cast<double>(MiB));
}

}  // namespace
}  // namespace berth::machine
