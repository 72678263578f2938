#include "machine/keeper.h"

#include <cstdlib>

#include <sys/socket.h>
#include <sys/un.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "machine/keeper_process.h"
#include "machine/live_store.h"
#include "machine/temporary_directory.h"
#include "machine/volume_store.h"

namespace berth::machine {
namespace {

using testing::HasSubstr;

constexpr std::uint64_t size = 64 * MiB;

class KeeperTest : public testing::Test {
 protected:
  ~KeeperTest() override {
    for (const auto& volume : store_.list().value()) (void)remove_live_store(run_, volume.name);
    release_live_store(run_, "none");
  }

  void create(const std::string& name, VolumeCreateRequest request = {.size = size}) {
    request.name = name;
    const auto created = store_.create(request);
    ASSERT_TRUE(created) << created.error().message();
  }
  KeeperOptions options(const std::string& volume) const {
    return {
        .state_dir = state_dir_, .run_dir = run_.run_dir, .id = "k-" + volume, .volume = volume};
  }
  std::unique_ptr<KeeperProcess> start(const std::string& volume) {
    return std::make_unique<KeeperProcess>(options(volume));
  }
  Result<Json> call(ControlClient& client, std::string method, Json params = Json::object()) {
    return loop_->run_until_complete(client.call(std::move(method), std::move(params)));
  }
  std::string serve(ControlClient& client, const std::string& socket) {
    const auto served = call(client, "serve.start", {{"unix", directory_ / socket}});
    EXPECT_TRUE(served) << served.error().message();
    return served ? (*served)["uri"].get<std::string>() : "";
  }
  std::string at_checkpoint(std::string uri, const std::string& checkpoint) {
    return uri.insert(uri.find('?'), "@" + checkpoint);
  }

  TemporaryDirectory directory_;
  std::string state_dir_ = directory_ / "state";
  RunLayout run_{directory_ / "run"};
  VolumeStore store_{state_dir_, run_.run_dir};
  std::unique_ptr<UringLoop> loop_ = UringLoop::create().value();
};

TEST_F(KeeperTest, KeepsAVolumeFromItsFirstWriteToACleanEnd) {
  create("disk");
  auto keeper = start("disk");
  auto client = keeper->connect(*loop_);
  ASSERT_TRUE(client);
  const auto hello = call(*client, "hello");
  EXPECT_EQ((*hello)["pid"], keeper->id());
  EXPECT_EQ((*hello)["volume"], "disk");
  EXPECT_EQ((*hello)["events"], Json::array());

  const std::string live = live_directory(run_, "disk").value();
  EXPECT_TRUE(std::filesystem::exists(live));
  const std::string uri = serve(*client, "s");
  NbdClient nbd(uri);
  ASSERT_TRUE(nbd.is_connected()) << NbdClient::error();
  EXPECT_EQ(nbd.size(), size);
  ASSERT_TRUE(nbd.write(0, "before")) << NbdClient::error();
  ASSERT_TRUE(call(*client, "checkpoint.create", {{"name", "c"}, {"refpoint", "r"}}));
  ASSERT_TRUE(nbd.write(0, "after!"));
  ASSERT_TRUE(nbd.write(10 * MiB, "more"));

  NbdClient old(at_checkpoint(uri, "c"));
  ASSERT_TRUE(old.is_connected()) << NbdClient::error();
  EXPECT_EQ(old.read(0, 6), "before");
  EXPECT_FALSE(old.write(0, "x"));
  EXPECT_EQ(nbd.read(0, 6), "after!");

  const auto changes = call(*client, "changes", {{"since", "r"}});
  ASSERT_TRUE(changes) << changes.error().message();
  EXPECT_EQ((*changes)["extents"], Json::parse("[[0, 65536], [10485760, 65536]]"));

  const auto lent = call(*client, "checkpoint.delete", {{"name", "c"}});
  ASSERT_FALSE(lent);
  EXPECT_EQ(lent.error().kind(), ErrorKind::in_use);

  ASSERT_TRUE(call(*client, "checkpoint.export", {{"name", "c"}, {"to", directory_ / "out"}}));
  EXPECT_EQ(read_text(directory_ / "out").substr(0, 6), "before");
  EXPECT_EQ(std::filesystem::file_size(directory_ / "out"), size);

  const auto listeners = call(*client, "serve.list");
  EXPECT_EQ((*listeners)["listeners"][0]["connections"], 2);

  ASSERT_TRUE(call(*client, "shutdown"));
  EXPECT_EQ(keeper->wait(), 0);
  EXPECT_FALSE(std::filesystem::exists(run_.control_socket("k-disk")));
  EXPECT_FALSE(std::filesystem::exists(live));
}

TEST_F(KeeperTest, ServesAgainWhatItServedBefore) {
  create("disk");
  auto keeper = start("disk");
  auto client = keeper->connect(*loop_);
  ASSERT_TRUE(client);
  const std::string uri = serve(*client, "s");
  EXPECT_EQ(serve(*client, "s"), uri);
  ASSERT_TRUE(NbdClient(uri).write(4096, "kept"));
  EXPECT_EQ(keeper->end(SIGTERM), 0);

  keeper = start("disk");
  client = keeper->connect(*loop_);
  ASSERT_TRUE(client);
  EXPECT_EQ(NbdClient(uri).read(4096, 4), "kept");
  ASSERT_TRUE(call(*client, "serve.stop", {{"unix", directory_ / "s"}}));
  EXPECT_FALSE(NbdClient(uri).is_connected());
  EXPECT_EQ(call(*client, "serve.stop", {{"unix", directory_ / "s"}}).error().kind(),
            ErrorKind::not_found);
  EXPECT_EQ(keeper->end(SIGINT), 0);

  keeper = start("disk");
  client = keeper->connect(*loop_);
  ASSERT_TRUE(client);
  EXPECT_EQ((*call(*client, "serve.list"))["listeners"].size(), 0U);
}

TEST_F(KeeperTest, NothingIsLostAndNothingOverReportedWhenItIsKilled) {
  create("disk");
  auto keeper = start("disk");
  auto client = keeper->connect(*loop_);
  ASSERT_TRUE(client);
  const std::string uri = serve(*client, "s");
  ASSERT_TRUE(call(*client, "refpoint.create", {{"name", "r"}}));
  ASSERT_TRUE(NbdClient(uri).write(20 * MiB, "unflushed"));
  EXPECT_EQ(keeper->end(SIGKILL), -SIGKILL);

  keeper = start("disk");
  client = keeper->connect(*loop_);
  ASSERT_TRUE(client);
  EXPECT_EQ(NbdClient(uri).read(20 * MiB, 9), "unflushed");
  const auto changes = call(*client, "changes", {{"since", "r"}});
  ASSERT_TRUE(changes) << changes.error().message();
  EXPECT_EQ((*changes)["extents"], Json::parse("[[20971520, 65536]]"));
  EXPECT_EQ((*changes)["exact"], true);
}

TEST_F(KeeperTest, APowerLossIsToldToWhoeverComesLater) {
  create("disk");
  auto keeper = start("disk");
  auto client = keeper->connect(*loop_);
  ASSERT_TRUE(client);
  const std::string uri = serve(*client, "s");
  ASSERT_TRUE(call(*client, "refpoint.create", {{"name", "r"}}));
  {
    NbdClient nbd(uri);
    ASSERT_TRUE(nbd.write(20 * MiB, "flushed"));
    ASSERT_TRUE(nbd.flush());
  }
  EXPECT_EQ(keeper->end(SIGKILL), -SIGKILL);
  ASSERT_TRUE(remove_live_store(run_, "disk"));

  keeper = start("disk");
  client = keeper->connect(*loop_);
  ASSERT_TRUE(client);
  const auto hello = call(*client, "hello");
  ASSERT_TRUE(hello);
  ASSERT_EQ((*hello)["events"].size(), 1U);
  EXPECT_EQ((*hello)["events"][0]["event"], "recovered_from_power_loss");
  EXPECT_EQ(NbdClient(uri).read(20 * MiB, 7), "flushed");
  const auto changes = call(*client, "changes", {{"since", "r"}});
  ASSERT_TRUE(changes) << changes.error().message();
  EXPECT_EQ((*changes)["exact"], false);
  EXPECT_EQ((*changes)["extents"], Json::parse("[[20971520, 4194304]]"));
}

TEST_F(KeeperTest, ASecondKeeperIsRefused) {
  create("disk");
  const auto keeper = start("disk");
  ASSERT_TRUE(keeper->connect(*loop_));
  EXPECT_EQ(start("disk")->wait(), 1);

  auto other = options("disk");
  other.id = "other";
  EXPECT_EQ(KeeperProcess(other).wait(), 1);
  EXPECT_TRUE(keeper->connect(*loop_));
}

TEST_F(KeeperTest, AVolumeThatIsNotThereEndsIt) {
  EXPECT_EQ(start("none")->wait(), 1);
  EXPECT_EQ(start("../none")->wait(), 1);
}

TEST_F(KeeperTest, AnOpenVolumeCannotBeRemoved) {
  create("disk");
  auto keeper = start("disk");
  ASSERT_TRUE(keeper->connect(*loop_));
  EXPECT_EQ(store_.remove("disk").error().kind(), ErrorKind::in_use);
  EXPECT_EQ(keeper->end(SIGTERM), 0);
  EXPECT_TRUE(store_.remove("disk"));
}

TEST_F(KeeperTest, AnInheritedSocketOutlivesTheKeeper) {
  create("disk");
  const std::string path = directory_ / "held";
  const Fd held(::socket(AF_UNIX, SOCK_STREAM, 0));
  sockaddr_un address{.sun_family = AF_UNIX};
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(::bind(held.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(held.get(), 10), 0);

  auto with_socket = options("disk");
  with_socket.listen_fds = {held.get()};
  KeeperProcess first(with_socket);
  const auto client = first.connect(*loop_);
  ASSERT_TRUE(client);
  const std::string uri = serve(*client, "held");
  ASSERT_TRUE(NbdClient(uri).write(0, "kept"));
  EXPECT_EQ(first.end(SIGKILL), -SIGKILL);

  // A client that connects while nobody is there waits for the next keeper.
  KeeperProcess second(with_socket);
  NbdClient waiting(uri);
  ASSERT_TRUE(waiting.is_connected()) << NbdClient::error();
  EXPECT_EQ(waiting.read(0, 4), "kept");
}

TEST_F(KeeperTest, TcpNeedsTlsOrLoopbackOrAWord) {
  create("disk");
  const auto keeper = start("disk");
  const auto client = keeper->connect(*loop_);
  ASSERT_TRUE(client);
  EXPECT_EQ(call(*client, "serve.start", {{"tcp", "0.0.0.0:0"}}).error().kind(),
            ErrorKind::precondition);
  const auto local = call(*client, "serve.start", {{"tcp", "127.0.0.1:0"}});
  ASSERT_TRUE(local) << local.error().message();
  EXPECT_TRUE(NbdClient((*local)["uri"]).is_connected());
  const auto insecure =
      call(*client, "serve.start", {{"tcp", "0.0.0.0:0"}, {"insecure", true}, {"read_only", true}});
  ASSERT_TRUE(insecure) << insecure.error().message();
  NbdClient reader((*insecure)["uri"]);
  ASSERT_TRUE(reader.is_connected()) << NbdClient::error();
  EXPECT_FALSE(reader.write(0, "x"));
  EXPECT_EQ(call(*client, "serve.start", {{"tcp", "127.0.0.1:0"}, {"tls_dir", directory_ / "none"}})
                .error()
                .kind(),
            ErrorKind::not_found);
  EXPECT_EQ(call(*client, "serve.start", {{"unix", directory_ / "x"}, {"export", "disk@none"}})
                .error()
                .kind(),
            ErrorKind::not_found);
}

TEST_F(KeeperTest, TlsLetsInWhoHasACertificate) {
  const std::string certificates = directory_ / "pki";
  std::filesystem::create_directory(certificates);
  const std::string script = "cd " + certificates +
                             " && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 "
                             "-nodes -keyout ca-key.pem -out ca-cert.pem"
                             " -days 2 -subj /CN=ca 2>/dev/null"
                             " && for side in server client; do"
                             " openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
                             "-keyout $side-key.pem -out $side.csr"
                             " -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 2>/dev/null"
                             " && openssl x509 -req -in $side.csr -CA ca-cert.pem -CAkey "
                             "ca-key.pem -CAcreateserial -out $side-cert.pem"
                             " -days 2 -copy_extensions copy 2>/dev/null || exit 1; done"
                             " && mkdir stranger && cp ca-cert.pem stranger/";
  ASSERT_EQ(std::system(script.c_str()), 0);

  create("disk");
  const auto keeper = start("disk");
  const auto client = keeper->connect(*loop_);
  ASSERT_TRUE(client);
  const auto served =
      call(*client, "serve.start", {{"tcp", "127.0.0.1:0"}, {"tls_dir", certificates}});
  ASSERT_TRUE(served) << served.error().message();
  const std::string uri = (*served)["uri"];
  EXPECT_THAT(uri, HasSubstr("nbds://"));
  NbdClient known(uri + "?tls-certificates=" + certificates);
  ASSERT_TRUE(known.is_connected()) << NbdClient::error();
  EXPECT_TRUE(known.write(0, "secret"));
  EXPECT_EQ(known.read(0, 6), "secret");
  EXPECT_FALSE(NbdClient(uri + "?tls-certificates=" + certificates + "/stranger").is_connected());
  EXPECT_FALSE(NbdClient("nbd" + uri.substr(4)).is_connected());
}

TEST_F(KeeperTest, AVolumeStandsOnACheckpointOfAnother) {
  create("base");
  const auto base = start("base");
  const auto base_client = base->connect(*loop_);
  ASSERT_TRUE(base_client);
  const std::string base_uri = serve(*base_client, "b");
  ASSERT_TRUE(NbdClient(base_uri).write(5 * MiB, "golden"));
  ASSERT_TRUE(call(*base_client, "checkpoint.create", {{"name", "gold"}}));
  ASSERT_TRUE(NbdClient(base_uri).write(5 * MiB, "newer!"));

  EXPECT_EQ(store_.create({.name = "clone", .backing = "volume:base@none"}).error().kind(),
            ErrorKind::not_found);
  create("clone", {.backing = "volume:base@gold"});
  const auto clone = start("clone");
  const auto clone_client = clone->connect(*loop_);
  ASSERT_TRUE(clone_client);
  EXPECT_EQ((*call(*clone_client, "volume.info"))["size"], size);
  const std::string clone_uri = serve(*clone_client, "c");
  EXPECT_EQ(NbdClient(clone_uri).read(5 * MiB, 6), "golden");

  EXPECT_EQ(call(*base_client, "checkpoint.delete", {{"name", "gold"}}).error().kind(),
            ErrorKind::in_use);
  EXPECT_EQ(clone->end(SIGTERM), 0);
  EXPECT_EQ(call(*base_client, "checkpoint.delete", {{"name", "gold"}}).error().kind(),
            ErrorKind::in_use);
  EXPECT_EQ(store_.remove("base").error().kind(), ErrorKind::in_use);
  ASSERT_TRUE(store_.remove("clone"));
  EXPECT_TRUE(call(*base_client, "checkpoint.delete", {{"name", "gold"}}));
}

TEST_F(KeeperTest, ABackingOfAnotherFormatIsPopulated) {
  const std::string raw = directory_ / "raw";
  const std::string image = directory_ / "image.qcow2";
  write_text(raw, std::string(3 * MiB, 'q') + std::string(5 * MiB, '\0'));
  ASSERT_EQ(std::system(("qemu-img convert -q -f raw -O qcow2 " + raw + " " + image).c_str()), 0);
  create("disk", {.backing = image});
  EXPECT_EQ(store_.summary("disk")->backing, "qcow2:" + image);
  const auto keeper = start("disk");
  const auto client = keeper->connect(*loop_);
  ASSERT_TRUE(client);
  const std::string uri = serve(*client, "s");
  EXPECT_EQ(NbdClient(uri).read(3 * MiB - 2, 4), std::string("qq\0\0", 4));
  const auto populated = call(*client, "volume.populate");
  ASSERT_TRUE(populated) << populated.error().message();
  EXPECT_GE((*populated)["copied"], 3 * MiB);
  EXPECT_EQ(NbdClient(uri).read(3 * MiB - 2, 4), std::string("qq\0\0", 4));
  EXPECT_EQ((*call(*client, "volume.populate"))["copied"], 0);
}

}  // namespace
}  // namespace berth::machine
