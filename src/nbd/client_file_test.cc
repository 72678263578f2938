// ClientFile against our own server, on a real socket: the server goes away, comes back, and is
// another one.

#include "nbd/client_file.h"

#include <cerrno>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/socket.h"
#include "async/test_support.h"
#include "base/units.h"
#include "nbd/memory_export.h"
#include "nbd/server.h"
#include "testing/sim_random.h"

namespace berth::nbd {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t size = 8 * MiB;

std::shared_ptr<MemoryExport> memory(std::uint64_t bytes, std::uint32_t block_minimum = 1) {
  return std::make_shared<MemoryExport>(MemoryExport::Options{
      .info = {.name = "disk", .size = bytes, .block_minimum = block_minimum}});
}

std::vector<std::byte> pattern(std::uint64_t seed, std::size_t length) {
  std::vector<std::byte> bytes(length);
  SimRandom(seed).fill(bytes);
  return bytes;
}

class ClientFileTest : public testing::Test {
 protected:
  ~ClientFileTest() override { stop(); }

  void serve(std::shared_ptr<Export> served) {
    exports_ = std::make_unique<FixedExports>();
    exports_->add(std::move(served));
    server_ = std::make_unique<Server>(*loop_, *exports_, ServerOptions{});
    server_->serve(MUST(SocketListener::listen_unix(*loop_, directory_ / "socket")));
  }
  void stop() {
    if (server_ == nullptr) return;
    run(*loop_, server_->stop());
    server_.reset();
  }
  Result<std::unique_ptr<ClientFile>> open(ClientFile::Options options) {
    return run(*loop_, ClientFile::open(*loop_, "nbd+unix:///disk?socket=" + directory_ / "socket",
                                        options));
  }
  std::unique_ptr<ClientFile> open() {
    return MUST(open({.attempts_max = 3, .pause_first = milliseconds(20)}));
  }

  ScratchDirectory directory_;
  std::unique_ptr<UringLoop> loop_ = UringLoop::create().value();
  std::unique_ptr<FixedExports> exports_;
  std::unique_ptr<Server> server_;
};

Task<Result<std::vector<std::byte>>> read(File& file, std::uint64_t offset, std::size_t length) {
  std::vector<std::byte> bytes(length);
  bytes.resize(CO_TRY(co_await file.read(offset, bytes)));
  co_return bytes;
}

Task<> read_into(File& file, std::uint64_t offset, std::size_t length,
                 Result<std::vector<std::byte>>& result) {
  result = co_await read(file, offset, length);
}

TEST_F(ClientFileTest, ReadsAnyRange) {
  const auto disk = memory(size);
  const auto content = pattern(1, size);
  MUST(run(*loop_, disk->write(0, content, false)));
  serve(disk);
  const auto file = open();
  EXPECT_EQ(MUST(file->size()), size);
  SimRandom random(1);
  for (int i = 0; i < 200; ++i) {
    const std::uint64_t offset = random.below(size + 1000);
    const std::size_t length = random.one_in(10) ? random.below(size) : random.below(10'000);
    const auto got = MUST(run(*loop_, read(*file, offset, length)));
    const std::uint64_t begin = std::min(offset, size);
    const std::uint64_t end = std::min(offset + length, size);
    EXPECT_TRUE(std::ranges::equal(got, std::span(content).subspan(begin, end - begin)))
        << offset << " " << length;
  }
}

TEST_F(ClientFileTest, ReadsAnyRangeOfAServerWithLargeBlocks) {
  const auto disk = memory(size + 100, 4096);
  const auto content = pattern(2, size);
  MUST(run(*loop_, disk->write(0, content, false)));
  serve(disk);
  const auto file = open();
  EXPECT_EQ(MUST(file->size()), size);  // its last bytes cannot be reached
  for (const std::uint64_t offset : {0UL, 1UL, 4095UL, 4096UL, 100'000UL, size - 1}) {
    for (const std::size_t length : {1UL, 4095UL, 4096UL, 70'000UL, size}) {
      const auto got = MUST(run(*loop_, read(*file, offset, length)));
      const std::uint64_t end = std::min(offset + length, size);
      EXPECT_TRUE(std::ranges::equal(got, std::span(content).subspan(offset, end - offset)))
          << offset << " " << length;
    }
  }
}

TEST_F(ClientFileTest, HasManyReadsUnderWay) {
  const auto disk = memory(size);
  const auto content = pattern(3, size);
  MUST(run(*loop_, disk->write(0, content, false)));
  serve(disk);
  const auto file = open();
  std::vector<Result<std::vector<std::byte>>> results(500);
  Gate gate(*loop_);
  for (std::size_t i = 0; i < results.size(); ++i)
    gate.spawn(read_into(*file, i * 8192, 8192, results[i]));
  run(*loop_, gate.drained());
  for (std::size_t i = 0; i < results.size(); ++i) {
    ASSERT_TRUE(results[i]);
    EXPECT_TRUE(std::ranges::equal(*results[i], std::span(content).subspan(i * 8192, 8192)));
  }
}

/// next_data and next_hole wait for the server, which is on this loop: on the pool, then.
Task<Result<std::uint64_t>> next(UringLoop& loop, File& file, std::uint64_t offset, bool hole) {
  co_return co_await offload(
      loop, [&] { return hole ? file.next_hole(offset) : file.next_data(offset); });
}

TEST_F(ClientFileTest, FindsDataAndHoles) {
  const auto disk = memory(20 * GiB);
  const std::vector<std::byte> one(1, std::byte{1});
  const std::uint64_t far = 10 * GiB;
  MUST(run(*loop_, disk->write(65536, one, false)));
  MUST(run(*loop_, disk->write(far, one, false)));
  serve(disk);
  const auto file = open();
  const auto data = [&](std::uint64_t offset) -> std::uint64_t {
    return MUST(run(*loop_, next(*loop_, *file, offset, false)));
  };
  const auto hole = [&](std::uint64_t offset) -> std::uint64_t {
    return MUST(run(*loop_, next(*loop_, *file, offset, true)));
  };
  EXPECT_EQ(data(0), 65536U);
  EXPECT_EQ(data(65540), 65540U);
  EXPECT_EQ(hole(0), 0U);
  EXPECT_EQ(hole(65540), 131072U);
  EXPECT_EQ(data(131072), far);
  EXPECT_EQ(hole(far), far + 65536);
  EXPECT_EQ(data(far + 65536), 20 * GiB);
  EXPECT_EQ(data(30 * GiB), 20 * GiB);
}

TEST_F(ClientFileTest, IsOnlyRead) {
  serve(memory(size));
  const auto file = open();
  const auto attempt = [](File& target) -> Task<std::vector<int>> {
    const std::vector<std::byte> bytes(512);
    std::vector<int> errors;
    for (const Result<void>& outcome :
         {co_await target.write(0, bytes), co_await target.punch(0, 512),
          co_await target.zero(0, 512), co_await target.sync()}) {
      errors.push_back(outcome ? 0 : outcome.error().errno_value());
    }
    co_return errors;
  };
  EXPECT_THAT(run(*loop_, attempt(*file)), testing::ElementsAre(EROFS, EROFS, EROFS, 0));
  EXPECT_EQ(file->truncate(1).error().kind(), ErrorKind::read_only);
  EXPECT_EQ(MUST(file->identity()).size, size);
}

TEST_F(ClientFileTest, SaysWhyItCannotBeOpened) {
  const auto refused = open(ClientFile::Options{});
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message(), testing::HasSubstr(directory_ / "socket"));
  serve(memory(size));
  const auto missing = run(
      *loop_, ClientFile::open(*loop_, "nbd+unix:///other?socket=" + directory_ / "socket", {}));
  EXPECT_EQ(missing.error().kind(), ErrorKind::not_found);
  EXPECT_FALSE(run(*loop_, ClientFile::open(*loop_, "http://example.org/", {})));
}

TEST_F(ClientFileTest, GivesUpOnAServerThatDoesNotAnswer) {
  const auto listener =
      MUST(SocketListener::listen_unix(*loop_, directory_ / "socket"));  // and nobody accepts
  EXPECT_EQ(open(ClientFile::Options{.connect_timeout = milliseconds(50)}).error().kind(),
            ErrorKind::timed_out);
}

TEST_F(ClientFileTest, GoesOnWhenTheServerComesBack) {
  const auto disk = memory(size);
  const auto content = pattern(4, size);
  MUST(run(*loop_, disk->write(0, content, false)));
  serve(disk);
  const auto file = open();
  for (int i = 0; i < 3; ++i) {
    stop();
    Result<std::vector<std::byte>> result;
    Gate gate(*loop_);
    gate.spawn(read_into(*file, 4096, size, result));
    serve(disk);
    run(*loop_, gate.drained());
    ASSERT_TRUE(result) << result.error().message();
    EXPECT_TRUE(std::ranges::equal(*result, std::span(content).subspan(4096)));
  }
}

TEST_F(ClientFileTest, FailsWhenTheServerStaysAwayAndRecoversLater) {
  const auto disk = memory(size);
  serve(disk);
  const auto file = open();
  stop();
  const auto failed = run(*loop_, read(*file, 0, 512));
  EXPECT_EQ(failed.error().kind(), ErrorKind::disconnected);
  serve(disk);
  EXPECT_EQ(MUST(run(*loop_, read(*file, 0, 512))).size(), 512U);
}

TEST_F(ClientFileTest, ReadsNothingFromAnotherExportInItsPlace) {
  serve(memory(size));
  const auto file = open();
  stop();
  serve(memory(size + MiB));
  EXPECT_EQ(run(*loop_, read(*file, 0, 512)).error().kind(), ErrorKind::io_error);
  stop();
  serve(memory(size));
  EXPECT_EQ(run(*loop_, read(*file, 0, 512)).error().kind(), ErrorKind::io_error);
}

TEST_F(ClientFileTest, EndsItsReadsWhenItIsClosed) {
  serve(memory(size));
  const auto file = open();
  stop();  // so that they cannot end by themselves
  std::vector<Result<std::vector<std::byte>>> results(20);
  Gate gate(*loop_);
  for (auto& result : results) gate.spawn(read_into(*file, 0, 4096, result));
  file->close();
  run(*loop_, gate.drained());
  for (const auto& result : results) EXPECT_EQ(result.error().kind(), ErrorKind::cancelled);
  EXPECT_EQ(run(*loop_, read(*file, 0, 1)).error().kind(), ErrorKind::cancelled);
  EXPECT_EQ(run(*loop_, next(*loop_, *file, 0, true)).error().kind(), ErrorKind::cancelled);
}

}  // namespace
}  // namespace berth::nbd
