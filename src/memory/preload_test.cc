#include "memory/preload.h"

#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>

#include <sys/stat.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "memory/dirty_scan.h"
#include "memory/test_support.h"

namespace berth::memory {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

class PreloadTest : public testing::Test {
 protected:
  static constexpr std::uint64_t size = 16 * MiB;

  void start(std::vector<std::string> more_environment = {}) {
    auto environment = MUST(preload_environment(BERTH_PRELOAD, file_));
    for (auto& variable : more_environment) environment.push_back(std::move(variable));
    process_.emplace(environment);
  }
  void expect_tracked() {
    const auto scan = MUST(DirtyScan::attach(process_->pid(), file_));
    MUST(scan->take());
    process_->tell("store", 5 * page, 2 * page, 1);
    process_->tell("receive", 100 * page, page, 2);
    const auto taken = MUST(scan->take());
    EXPECT_THAT(taken, ElementsAre(PageRange{.offset = 5 * page, .length = 2 * page},
                                   PageRange{.offset = 100 * page, .length = page}));
  }
  /// It ends with one line, which is not "ok".
  void expect_end(const std::string& command, const std::string& why) {
    const std::string line = process_->ask(command);
    EXPECT_THAT(line, StartsWith("libberth-preload.so: the machine's memory cannot be tracked: "));
    EXPECT_THAT(line, HasSubstr(why));
    EXPECT_EQ(process_->ask("environment HOME"), "");
    EXPECT_EQ(process_->finish(), 1);
  }

  ScratchDirectory directory_{memory_place};
  std::string file_ = make_file(directory_ / "ram", size);
  std::optional<TrackedProcess> process_;
};

TEST_F(PreloadTest, TheMemoryObjectIsTrackedFromItsMappingOn) {
  start();
  process_->tell("map", file_, size);
  expect_tracked();
}

TEST_F(PreloadTest, AnotherNameOfTheMemoryObjectIsTrackedToo) {
  start();
  std::filesystem::create_symlink(file_, directory_ / "link");
  process_->tell("map", directory_ / "link", size);
  expect_tracked();
}

TEST_F(PreloadTest, OtherFilesAreLeftAlone) {
  const std::string other = make_file(directory_ / "other", size);
  start();
  process_->tell("map", other, size);
  const auto scan = DirtyScan::attach(process_->pid(), other);
  ASSERT_FALSE(scan);
  EXPECT_EQ(scan.error().kind(), ErrorKind::unsupported);
  process_->tell("store", 0, 10 * page, 1);
  process_->tell("punch", 0, 5 * page);
  EXPECT_EQ(read_at(other, 0, 1), std::string(1, '\0'));
}

TEST_F(PreloadTest, AnUnprivilegedUserIsTrackedLikeAnyOther) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root becomes another user";
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0711), 0);
  ASSERT_EQ(::chown(file_.c_str(), 65534, 65534), 0);
  // Not preloaded into the programs on the way, which take privileges away.
  std::vector<std::string> prefix = {"/usr/bin/setpriv", "--reuid=65534",  "--regid=65534",
                                     "--clear-groups",   "--no-new-privs", "--bounding-set=-all",
                                     "--inh-caps=-all",  "/usr/bin/env"};
  for (auto& variable : MUST(preload_environment(BERTH_PRELOAD, file_)))
    prefix.push_back(std::move(variable));
  process_.emplace(std::vector<std::string>(), prefix);
  process_->tell("map", file_, size);
  expect_tracked();
}

TEST_F(PreloadTest, MemoryMappedAnewIsRegisteredAgainAndCountsAsWritten) {
  start();
  process_->tell("map", file_, size);
  const auto scan = MUST(DirtyScan::attach(process_->pid(), file_));
  MUST(scan->take());
  process_->tell("remap", 4 * MiB, 2 * MiB);
  const auto taken = MUST(scan->take());
  EXPECT_THAT(taken, ElementsAre(PageRange{.offset = 4 * MiB, .length = 2 * MiB}));
}

TEST_F(PreloadTest, NoHoleCanBePunchedIntoTheMemoryObject) {
  start();
  process_->tell("map", file_, size);
  process_->tell("store", 0, 10 * page, 1);
  EXPECT_THAT(process_->ask(fmt::format("punch 0 {}", page)), HasSubstr("not supported"));
  EXPECT_EQ(read_at(file_, 0, 1), "\x01");
}

TEST_F(PreloadTest, LeavesNothingOfItselfInTheEnvironment) {
  start();
  EXPECT_EQ(process_->ask("environment LD_PRELOAD"), "ok (none)");
  EXPECT_EQ(process_->ask("environment BERTH_MEMORY_OBJECT"), "ok (none)");
}

TEST_F(PreloadTest, LeavesWhatOthersPreload) {
  process_.emplace(std::vector{
      fmt::format("LD_PRELOAD=/lib/x86_64-linux-gnu/libm.so.6 {}:/lib/x86_64-linux-gnu/libdl.so.2",
                  BERTH_PRELOAD),
      fmt::format("BERTH_MEMORY_OBJECT={}", file_), std::string("HOME=/home")});
  EXPECT_EQ(process_->ask("environment LD_PRELOAD"),
            "ok /lib/x86_64-linux-gnu/libm.so.6:/lib/x86_64-linux-gnu/libdl.so.2");
  EXPECT_EQ(process_->ask("environment HOME"), "ok /home");
}

TEST_F(PreloadTest, ItsDescriptorIsClosedOnExec) {
  start();
  process_->tell("map", file_, size);
  const std::string process = fmt::format("/proc/{}/", process_->pid());
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(process + "fd")) {
    if (std::filesystem::read_symlink(entry.path()) != "anon_inode:[userfaultfd]") continue;
    ++found;
    std::ostringstream info;
    info << std::ifstream(process + "fdinfo/" + entry.path().filename().string()).rdbuf();
    EXPECT_THAT(info.str(), testing::ContainsRegex("flags:[^0-9]*02[0-7]{6}"));  // O_CLOEXEC
  }
  EXPECT_EQ(found, 1);
}

TEST_F(PreloadTest, WithoutAMemoryObjectNothingRuns) {
  process_.emplace(std::vector{fmt::format("LD_PRELOAD={}", BERTH_PRELOAD)});
  expect_end("environment HOME", "BERTH_MEMORY_OBJECT");
}

TEST_F(PreloadTest, WithAMemoryObjectThatIsMissingNothingRuns) {
  process_.emplace(MUST(preload_environment(BERTH_PRELOAD, directory_ / "nothing")));
  expect_end("environment HOME", "No such file");
}

TEST_F(PreloadTest, MemoryMappedPrivatelyEndsIt) {
  start();
  expect_end(fmt::format("map-private {} {}", file_, size), "share=on");
}

TEST_F(PreloadTest, WithoutUserfaultfdMappingTheMemoryEndsIt) {
  start();
  process_->tell("forbid-userfaultfd");
  expect_end(fmt::format("map {} {}", file_, size), "Operation not permitted");
}

TEST_F(PreloadTest, MemoryThatCannotBeRegisteredEndsIt) {
  start();
  expect_end(fmt::format("map-read-only {} {}", file_, size), "cannot be registered");
}

TEST(PreloadEnvironment, APathThatLdPreloadCannotHoldIsRefused) {
  for (const char* path : {"/opt/my berth/lib.so", "/opt/a:b/lib.so", "lib.so", ""}) {
    const auto environment = preload_environment(path, "/dev/shm/ram");
    ASSERT_FALSE(environment);
    EXPECT_EQ(environment.error().kind(), ErrorKind::invalid_argument);
  }
}

TEST(FindPreload, SaysWhereItLooked) {
  // The test program does not lie beside the library, as berth does.
  const auto found = find_preload();
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().kind(), ErrorKind::not_found);
  EXPECT_THAT(found.error().message(), HasSubstr("libberth-preload.so"));
}

}  // namespace
}  // namespace berth::memory
