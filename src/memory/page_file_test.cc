#include "memory/page_file.h"

#include <array>
#include <filesystem>
#include <span>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "memory/test_support.h"

namespace berth::memory {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr std::uint64_t size = 4 * MiB + page;
constexpr std::uint64_t granule = 64 * KiB;

class PageFileTest : public testing::Test {
 protected:
  PageFileTest() {
    held_.add({.offset = granule + 17, .length = granule});
    held_.add({.offset = size - 1, .length = 1});
    std::string trailer(PageFile::trailer_size, '\0');
    PageFile::encode_trailer(std::as_writable_bytes(std::span(trailer)), size, held_);
    make_file(path_, size + PageFile::trailer_size);
    write_at(path_, size, trailer);
  }
  ErrorKind kind_of_open() const {
    const auto opened = PageFile::open(path_);
    return opened ? ErrorKind::internal : opened.error().kind();
  }

  ScratchDirectory directory_{"/var/tmp"};
  std::string path_ = directory_ / "pages";
  GranuleSet held_{size};
};

TEST_F(PageFileTest, SaysWhichGranulesItHolds) {
  const auto file = MUST(PageFile::open(path_));
  EXPECT_EQ(file.memory_size(), size);
  EXPECT_THAT(file.held().ranges(), ElementsAre(PageRange{.offset = granule, .length = 2 * granule},
                                                PageRange{.offset = 4 * MiB, .length = page}));
}

TEST_F(PageFileTest, AnyByteThatIsWrongInItsHeadIsFound) {
  for (const std::uint64_t at : {0, 7, 8, 16, 24, 32, 40, 100, 2048, 4095}) {
    const std::string before = read_at(path_, size + at, 1);
    write_at(path_, size + at, std::string(1, static_cast<char>(before[0] ^ 1)));
    EXPECT_EQ(kind_of_open(), ErrorKind::corrupt) << at;
    write_at(path_, size + at, before);
  }
  MUST(PageFile::open(path_));
}

TEST_F(PageFileTest, AFileOfAnotherLengthIsNone) {
  for (const std::uint64_t length : {size + PageFile::trailer_size + page, size, page}) {
    std::filesystem::resize_file(path_, length);
    EXPECT_EQ(kind_of_open(), ErrorKind::corrupt);
  }
}

TEST_F(PageFileTest, RemembersWhatIsNeededFirst) {
  auto file = MUST(PageFile::open(path_));
  EXPECT_EQ(MUST(file.prefetch()), 0U);
  GranuleSet first(size);
  first.add({.offset = 0, .length = 2 * granule});  // one of them is not in the file
  MUST(file.set_working_set(first));
  EXPECT_EQ(MUST(file.prefetch()), granule);
  auto again = MUST(PageFile::open(path_));
  EXPECT_EQ(MUST(again.prefetch()), granule);
  EXPECT_EQ(again.held().count(), 3U);
}

TEST_F(PageFileTest, WhatIsNeededFirstMayBeDamagedWithoutHarm) {
  auto file = MUST(PageFile::open(path_));
  MUST(file.set_working_set(held_));
  write_at(path_, size + 4096 + 2048, "\x55");
  auto again = MUST(PageFile::open(path_));
  EXPECT_EQ(MUST(again.prefetch()), 0U);
}

TEST(GranuleSize, NeverLeadsToMoreMappingsThanAreAllowed) {
  EXPECT_EQ(granule_size(page), 64 * KiB);
  EXPECT_EQ(granule_size(1 * GiB), 64 * KiB);
  EXPECT_EQ(granule_size(GiB + page), 128 * KiB);
  for (const std::uint64_t memory : {page, 3 * MiB, 5 * GiB, 64 * GiB, TiB, 16 * TiB}) {
    EXPECT_LE(GranuleSet(memory).granules(), memory_mappings_max);
    EXPECT_EQ(granule_size(memory) % (64 * KiB), 0U);
  }
}

TEST(GranuleSet, IsWrittenAsBitsAndRefusesThoseThatAreNotOfTheMemory) {
  GranuleSet set(10 * granule);
  set.add({.offset = 9 * granule, .length = 1});
  std::array<std::byte, GranuleSet::encoded_size> bytes{};
  set.encode(bytes);
  EXPECT_EQ(bytes[1], std::byte{2});
  GranuleSet read(10 * granule);
  EXPECT_TRUE(read.decode(bytes));
  EXPECT_TRUE(read.has(9));
  EXPECT_EQ(read.count(), 1U);
  EXPECT_FALSE(GranuleSet(9 * granule).decode(bytes));
  EXPECT_THAT(GranuleSet(granule).ranges(), IsEmpty());
}

}  // namespace
}  // namespace berth::memory
