// changes() against something obviously right: an array of the epoch in which each block last
// changed.
#include <algorithm>
#include <set>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "disk/test_support.h"

namespace berth::disk {
namespace {

/// A volume, and for each block the number of the cut after which it was last written.
class ChangesModel {
 public:
  ChangesModel(std::uint64_t seed, std::uint64_t size, std::uint32_t block_size)
      : machine_(seed),
        random_(mix64(seed)),
        size_(size),
        block_size_(block_size),
        changed_(divide_up(size, block_size)),
        zero_(changed_.size()) {
    MUST(machine_.create({.size = size, .block_size = block_size}));
    MUST(machine_.open());
  }

  void live(int rounds) {
    for (int round = 0; round < rounds; ++round) {
      cut();
      const std::uint64_t writes = random_.below(30);
      for (std::uint64_t i = 0; i < writes; ++i) write();
      if (random_.one_in(8)) MUST(machine_.reopen());
    }
  }

  /// Every pair of points, at random page sizes and ranges.
  void compare() {
    for (int i = 0; i < 30; ++i) {
      const std::uint64_t since = random_.below(cuts_);
      const bool live = checkpoints_.empty() || random_.one_in(2);
      const std::uint64_t until =
          live ? UINT64_MAX
               : *std::next(checkpoints_.begin(),
                            static_cast<std::ptrdiff_t>(random_.below(checkpoints_.size())));
      if (!live && until < since) continue;
      compare(since, until);
    }
  }

 private:
  void cut() {
    const std::string name = fmt::format("{}", cuts_);
    const bool checkpoint = random_.one_in(3);
    if (checkpoint) {
      MUST(machine_.run(machine_.volume->cut({.checkpoint = "c" + name,
                                              .refpoint = "r" + name,
                                              .durability = Durability::durable,
                                              .group = {}})));
      checkpoints_.insert(cuts_);
      as_of_[cuts_] = changed_;
    } else {
      MUST(machine_.refpoint("r" + name));
    }
    ++cuts_;
    if (checkpoints_.size() > 3) {
      const std::uint64_t gone = *std::next(
          checkpoints_.begin(), static_cast<std::ptrdiff_t>(random_.below(checkpoints_.size())));
      MUST(machine_.run(machine_.volume->release_checkpoint(fmt::format("c{}", gone))));
      checkpoints_.erase(gone);
    }
  }
  void write() {
    const std::uint64_t block =
        random_.one_in(3) ? random_.below(4) : random_.below(changed_.size());
    const std::uint64_t count = std::min<std::uint64_t>(
        random_.one_in(4) ? random_.between(1, 40) : 1, changed_.size() - block);
    const std::uint64_t offset = block * block_size_;
    const std::uint64_t length = std::min(size_ - offset, count * block_size_);
    const bool zero = random_.one_in(6);
    if (zero) {
      MUST(machine_.run(machine_.volume->zero(offset, length, false)));
    } else {
      MUST(machine_.write(offset, length, static_cast<char>(random_.between('a', 'z'))));
    }
    for (std::uint64_t one = block; one < block + count; ++one) {
      if (!zero || !zero_[one]) changed_[one] = cuts_;  // zeros over zeros change nothing
      zero_[one] = zero;
    }
  }

  void compare(std::uint64_t since, std::uint64_t until) {
    const std::vector<std::uint64_t>& changed = until == UINT64_MAX ? changed_ : as_of_[until];
    ChangesRequest request;
    request.since = fmt::format("r{}", since);
    if (until != UINT64_MAX) request.until = fmt::format("c{}", until);
    request.extents_max = random_.one_in(2) ? random_.between(1, 5) : 1000;
    if (random_.one_in(2)) {
      request.offset = random_.below(size_ + 1000);
      request.length = random_.one_in(3) ? UINT64_MAX : random_.below(size_);
    }
    const std::uint64_t start = std::min(request.offset, size_);
    const std::uint64_t end = start + std::min(request.length, size_ - start);

    std::vector<Extent> whole;
    std::uint64_t pages = 0;
    for (;;) {
      const auto page = machine_.run(machine_.volume->changes(request));
      ASSERT_TRUE(page.has_value()) << page.error().message();
      ASSERT_TRUE(page->exact);
      ASSERT_LE(page->extents.size(), request.extents_max);
      ASSERT_LT(++pages, 100'000U);
      std::uint64_t before = request.offset;
      for (std::size_t i = 0; i < page->extents.size(); ++i) {
        const Extent& extent = page->extents[i];
        ASSERT_GT(extent.length, 0U);
        ASSERT_GE(extent.offset, before);
        if (i > 0) ASSERT_GT(extent.offset, before) << "touches the one before it";
        before = extent.offset + extent.length;
        ASSERT_LE(before, page->next_offset);
        // A run may be cut in two where a page of the answer ends, nowhere else.
        if (!whole.empty() && whole.back().offset + whole.back().length == extent.offset) {
          ASSERT_EQ(i, 0U);
          whole.back().length += extent.length;
        } else {
          whole.push_back(extent);
        }
      }
      if (page->complete) {
        ASSERT_EQ(page->next_offset, std::max(start, end));
        break;
      }
      ASSERT_GT(page->next_offset, request.offset);
      request.length = end - page->next_offset;
      request.offset = page->next_offset;
    }

    std::vector<Extent> expected;
    for (std::uint64_t block = 0; block < changed.size(); ++block) {
      if (changed[block] <= since) continue;  // 0: never; n: after cut n-1
      const std::uint64_t from = std::max(start, block * block_size_);
      const std::uint64_t to = std::min({end, (block + 1) * block_size_, size_});
      if (from >= to) continue;
      if (!expected.empty() && expected.back().offset + expected.back().length == from) {
        expected.back().length += to - from;
      } else {
        expected.push_back({from, to - from});
      }
    }
    ASSERT_EQ(whole, expected) << "since " << since << " until "
                               << static_cast<std::int64_t>(until);
  }

  VolumeMachine machine_;
  SimRandom random_;
  std::uint64_t size_;
  std::uint32_t block_size_;
  std::uint64_t cuts_ = 0;
  std::vector<std::uint64_t>
      changed_;  // the number of cuts before the last write; 0: never written, or before any
  std::vector<bool> zero_;
  std::set<std::uint64_t> checkpoints_;
  std::map<std::uint64_t, std::vector<std::uint64_t>> as_of_;
};

class ChangesTest : public testing::TestWithParam<std::uint64_t> {};

TEST_P(ChangesTest, AreTheWrittenBlocksMergedClippedAndInPages) {
  const std::uint64_t seed = GetParam();
  // Several map pages, and a last block that is not whole.
  ChangesModel model(seed, seed % 2 == 0 ? 10 * MiB : 9 * MiB + 5 * KiB + 512, 4 * KiB);
  for (int i = 0; i < 4 && !HasFatalFailure(); ++i) {
    model.live(6);
    model.compare();
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, ChangesTest, testing::Range<std::uint64_t>(1, 13));

}  // namespace
}  // namespace berth::disk
