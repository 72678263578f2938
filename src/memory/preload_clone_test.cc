// What the preload makes of a process that is given a template. memory/preload_test.cc has the
// other half: processes whose own memory is tracked.
#include <filesystem>
#include <optional>

#include <sys/stat.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "memory/dirty_scan.h"
#include "memory/memory_object.h"
#include "memory/preload.h"
#include "memory/test_support.h"

namespace berth::memory {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class CloneTest : public testing::Test {
 protected:
  static constexpr std::uint64_t size = 4 * MiB;

  CloneTest() {
    for (std::uint64_t at = 0; at < size / 2; at += page)
      write_at(file_, at, std::string(page, static_cast<char>(1 + at / page % 255)));
    content_ = read_at(file_, 0, size);
    MUST(seal_memory_object(file_));
  }
  ~CloneTest() override { EXPECT_TRUE(read_at(file_, 0, size) == content_) << "it has changed"; }

  void start(std::optional<TrackedProcess>& process) {
    process.emplace(MUST(clone_environment(BERTH_PRELOAD, file_)));
  }
  void expect_end(const std::string& why) {
    EXPECT_THAT(process_->ask("environment HOME"),
                testing::AllOf(StartsWith("libberth-preload.so: the machine's memory cannot be "),
                               HasSubstr(why)));
    EXPECT_EQ(process_->finish(), 1);
  }

  ScratchDirectory directory_{memory_place};
  std::string file_ = make_file(directory_ / "template", size);
  std::string content_;
  std::optional<TrackedProcess> process_;
};

TEST_F(CloneTest, SeesTheTemplateAndKeepsWhatItWritesToItself) {
  start(process_);
  process_->tell("map", file_, size);
  EXPECT_TRUE(process_->peek(0, size) == content_);
  process_->tell("store", 5 * page + 17, 3 * page, 0xee);
  process_->tell("receive", size - page, page, 0xdd);
  std::string expected = content_;
  expected.replace(5 * page + 17, 3 * page, 3 * page, '\xee');
  expected.replace(size - page, page, page, '\xdd');
  EXPECT_TRUE(process_->peek(0, size) == expected);
}

TEST_F(CloneTest, SiblingsDoNotSeeEachOther) {
  start(process_);
  process_->tell("map", file_, size);
  process_->tell("store", 0, page, 0xaa);
  std::optional<TrackedProcess> sibling;
  start(sibling);
  sibling->tell("map", file_, size);
  EXPECT_TRUE(sibling->peek(0, size) == content_);
  sibling->tell("store", 0, page, 0xbb);
  EXPECT_EQ(process_->peek(0, 1), "\xaa");
  process_->kill();
  EXPECT_EQ(sibling->peek(0, 1), "\xbb");
}

TEST_F(CloneTest, TheTemplateNeitherShrinksNorGrowsNorLosesPages) {
  start(process_);
  process_->tell("map", file_, size);
  EXPECT_THAT(process_->ask(fmt::format("punch 0 {}", page)), HasSubstr("not supported"));
  EXPECT_THAT(process_->ask(fmt::format("allocate {} {}", size - page, page)),
              HasSubstr("not supported"));
  for (const std::uint64_t length : {page, 2 * size})
    EXPECT_THAT(process_->ask(fmt::format("resize {}", length)), HasSubstr("not permitted"));
  EXPECT_EQ(std::filesystem::file_size(file_), size);
}

// That it is root's keeps it from others already; this shows that nothing but opening it as QEMU
// does is needed of them.
TEST_F(CloneTest, AnUnprivilegedUserCanBeOne) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root becomes another user";
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0711), 0);
  std::vector<std::string> prefix = {"/usr/bin/setpriv", "--reuid=65534",  "--regid=65534",
                                     "--clear-groups",   "--no-new-privs", "--bounding-set=-all",
                                     "--inh-caps=-all",  "/usr/bin/env"};
  std::vector<std::string> without = prefix;
  for (auto& variable : MUST(clone_environment(BERTH_PRELOAD, file_)))
    prefix.push_back(std::move(variable));
  process_.emplace(std::vector<std::string>(), prefix);
  process_->tell("map", file_, size);
  process_->tell("store", 0, page, 0xaa);
  EXPECT_EQ(process_->peek(0, 1), "\xaa");
  TrackedProcess other({}, without);
  EXPECT_THAT(other.ask(fmt::format("map {} {}", file_, size)), HasSubstr("Permission denied"));
}

TEST_F(CloneTest, OtherFilesAreOpenedAndMappedAsEver) {
  const std::string other = make_file(directory_ / "other", size);
  start(process_);
  process_->tell("map", other, size);
  process_->tell("store", page, page, 7);
  process_->tell("resize", 2 * size);
  EXPECT_EQ(read_at(other, page, 1), "\x07");
  EXPECT_EQ(std::filesystem::file_size(other), 2 * size);
}

TEST_F(CloneTest, CannotBeTracked) {
  start(process_);
  process_->tell("map", file_, size);
  const auto scan = DirtyScan::attach(process_->pid(), file_);
  ASSERT_FALSE(scan);
  EXPECT_EQ(scan.error().kind(), ErrorKind::not_found);
}

TEST_F(CloneTest, ATemplateMappedPrivatelyEndsIt) {
  start(process_);
  EXPECT_THAT(process_->ask(fmt::format("map-private {} {}", file_, size)), HasSubstr("share=on"));
  EXPECT_EQ(process_->finish(), 1);
}

TEST_F(CloneTest, ATemplateThatIsNotSealedRunsNothing) {
  for (const mode_t mode : {0644, 0464, 0446}) {
    ASSERT_EQ(::chmod(file_.c_str(), mode), 0);
    start(process_);
    expect_end("a clone's: the template is not sealed");
  }
}

TEST_F(CloneTest, ATemplateThatIsMissingRunsNothing) {
  process_.emplace(MUST(clone_environment(BERTH_PRELOAD, directory_ / "nothing")));
  expect_end("No such file");
}

TEST_F(CloneTest, ATemplateAndAMemoryObjectRunNothing) {
  auto environment = MUST(clone_environment(BERTH_PRELOAD, file_));
  environment.push_back(fmt::format("BERTH_MEMORY_OBJECT={}", file_));
  process_.emplace(environment);
  expect_end("BERTH_MEMORY_TEMPLATE");
}

TEST_F(CloneTest, LeavesNothingOfThePreloadInTheEnvironment) {
  start(process_);
  for (const char* name : {"LD_PRELOAD", "BERTH_MEMORY_TEMPLATE"})
    EXPECT_EQ(process_->ask(fmt::format("environment {}", name)), "ok (none)");
}

}  // namespace
}  // namespace berth::memory
