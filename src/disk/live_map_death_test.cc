// A process that is killed between any two of its instructions leaves a live map that its successor
// can trust. A child does one thing to a map, instruction by instruction; after each, what would be
// left of the map is looked at.
#include <csignal>
#include <cstring>
#include <functional>
#include <optional>

#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "disk/live_map.h"

namespace berth::disk {
namespace {

constexpr int exit_untraced = 77;
constexpr std::uint64_t instructions_max = 10'000'000;

/// One region of memory, the same for parent and child.
class OneRegion final : public SharedMemoryStore {
 public:
  OneRegion() {
    void* mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(mapped != MAP_FAILED);
    bytes_ = {static_cast<std::byte*>(mapped), size};
  }
  OneRegion(const OneRegion&) = delete;
  OneRegion& operator=(const OneRegion&) = delete;
  ~OneRegion() override { ::munmap(bytes_.data(), bytes_.size()); }

  Result<std::unique_ptr<SharedMemory>> open(const std::string& /*name*/) override {
    return std::make_unique<View>(bytes_);
  }
  Result<std::unique_ptr<SharedMemory>> create(const std::string& /*name*/,
                                               std::uint64_t /*size*/) override {
    return std::make_unique<View>(bytes_);
  }
  Result<void> remove(const std::string& /*name*/) override { return {}; }
  std::string boot_id() const override { return "boot"; }
  MutableBytes bytes() { return bytes_; }

 private:
  static constexpr std::size_t size = 64 * KiB;
  class View final : public SharedMemory {
   public:
    explicit View(MutableBytes bytes) : bytes_(bytes) {}
    MutableBytes bytes() override { return bytes_; }

   private:
    MutableBytes bytes_;
  };
  MutableBytes bytes_;
};

class LiveMapDeathTest : public testing::Test {
 protected:
  LiveMapDeathTest() {
    key_.volume.bytes.fill(std::byte{1});
    key_.session.bytes.fill(std::byte{2});
  }

  /// Runs `action` in a child; `what_is_wrong` looks at the memory after each of its instructions.
  void step_through(const std::function<void()>& action,
                    const std::function<std::string()>& what_is_wrong) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(exit_untraced);
      ::raise(SIGSTOP);
      action();
      ::_exit(0);
    }
    std::uint64_t instructions = 0;
    int status = 0;
    while (::waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
      const std::string wrong = what_is_wrong();
      if (!wrong.empty() || ++instructions > instructions_max) {
        ::kill(child, SIGKILL);
        ::waitpid(child, &status, 0);
        FAIL() << "after " << instructions << " instructions: " << wrong;
      }
      ASSERT_EQ(::ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr), 0);
    }
    ASSERT_TRUE(WIFEXITED(status)) << status;
    if (WEXITSTATUS(status) == exit_untraced) GTEST_SKIP() << "no process may be traced here";
    ASSERT_EQ(WEXITSTATUS(status), 0);
    EXPECT_GT(instructions, 10U);
    EXPECT_EQ(what_is_wrong(), "");
  }

  OneRegion store_;
  LiveMap::Key key_{.volume = {}, .session = {}, .block_size = 64 * KiB, .page_count = 2};
};

TEST_F(LiveMapDeathTest, AWordIsNeverOnAPageThatDoesNotKnowOfIt) {
  const MapWord before = MapWord::of(3, BlockState::absent);
  for (const MapWord after :
       {MapWord::of(9, BlockState::absent), MapWord::of(3, BlockState::present),
        MapWord::of(9, BlockState::zero)}) {
    std::memset(store_.bytes().data(), 0, store_.bytes().size());
    LiveMap map = MUST(LiveMap::create(store_, key_, 9));
    map.page_words(1)[5] = before;
    map.page(1).epoch_max = 3;
    step_through([&] { map.set_word(words_per_page + 5, after); },
                 [&]() -> std::string {
                   const LivePage& page = map.page(1);
                   if (map.word(words_per_page + 5) == before) return "";
                   if (page.epoch_max < after.epoch()) return "the maximum is too low";
                   if (after.epoch() != before.epoch() && (page.dirt & dirty_epochs) == 0)
                     return "the epoch is not dirty";
                   if (after.state() != before.state() && (page.dirt & dirty_states) == 0)
                     return "the state is not dirty";
                   return "";
                 });
    if (IsSkipped() || HasFailure()) return;
    EXPECT_EQ(map.word(words_per_page + 5), after);
  }
}

TEST_F(LiveMapDeathTest, APageThatWasFlushedIsDirtyUntilItsVersionIsKnown) {
  LiveMap map = MUST(LiveMap::create(store_, key_, 9));
  map.page(1).sequence = 7;
  map.page(1).dirt = dirty_epochs | dirty_states;
  step_through(
      [&] {
        map.begin_capture(1);
        map.end_capture(1);
      },
      [&]() -> std::string {
        const LivePage& page = map.page(1);
        if (page.sequence != 7 && page.sequence != 8) return "a sequence that nobody wrote";
        return page.dirt == clean_page && page.sequence != 8 ? "clean, in the version before" : "";
      });
  if (IsSkipped() || HasFailure()) return;
  EXPECT_EQ(map.page(1).sequence, 8U);
  EXPECT_EQ(map.page(1).dirt, clean_page);
}

TEST_F(LiveMapDeathTest, APageWhoseFlushFailedIsNeverClean) {
  LiveMap map = MUST(LiveMap::create(store_, key_, 9));
  map.page(1).dirt = dirty_states << capturing_shift;
  const auto is_clean = [&] {
    return std::string(map.page(1).dirt == clean_page ? "it is clean" : "");
  };
  step_through([&] { map.relist(1); }, is_clean);
  if (IsSkipped() || HasFailure()) return;
  EXPECT_EQ(map.page(1).dirt, dirty_states);
}

TEST_F(LiveMapDeathTest, WhoTakesAMapOverMayDieAsWell) {
  LiveMap map = MUST(LiveMap::create(store_, key_, 9));
  map.page(0).dirt = dirty_epochs;
  map.page(1).dirt = dirty_states << capturing_shift;
  step_through([&] { MUST(LiveMap::adopt(store_, key_)); },
               [&]() -> std::string {
                 if (map.page(0).dirt == clean_page) return "page 0 is clean";
                 if (map.page(1).dirt == clean_page) return "page 1 is clean";
                 return "";
               });
  if (IsSkipped() || HasFailure()) return;
  EXPECT_EQ(map.page(1).dirt, dirty_states);
}

TEST_F(LiveMapDeathTest, AMapThatCanBeTakenOverIsComplete) {
  step_through([&] { MUST(LiveMap::create(store_, key_, 9)); },
               [&]() -> std::string {
                 if (load_le<std::uint64_t>(store_.bytes().data()) == 0) return "";
                 const auto adopted = LiveMap::adopt(store_, key_);
                 if (!adopted) return adopted.error().message();
                 return adopted->epoch() == 9 ? "" : "it has no epoch";
               });
  if (IsSkipped() || HasFailure()) return;
  EXPECT_TRUE(LiveMap::adopt(store_, key_).has_value());
}

}  // namespace
}  // namespace berth::disk
