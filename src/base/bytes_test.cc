#include "base/bytes.h"

#include <array>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "base/aligned_buffer.h"
#include "base/checksum.h"

namespace berth {
namespace {

TEST(BytesTest, IntegersHaveTheirByteOrder) {
  std::array<std::byte, 8> buffer{};
  store_le<std::uint32_t>(buffer.data(), 0x01020304);
  EXPECT_EQ(buffer[0], std::byte{4});
  EXPECT_EQ(buffer[3], std::byte{1});
  EXPECT_EQ(load_le<std::uint32_t>(buffer.data()), 0x01020304U);
  EXPECT_EQ(load_be<std::uint32_t>(buffer.data()), 0x04030201U);
  store_be<std::uint64_t>(buffer.data(), 0x0102030405060708);
  EXPECT_EQ(buffer[0], std::byte{1});
  EXPECT_EQ(load_be<std::uint64_t>(buffer.data()), 0x0102030405060708U);
}

TEST(BytesTest, IntegersNeedNoAlignment) {
  std::array<std::byte, 16> buffer{};
  for (std::size_t offset = 0; offset < 8; ++offset) {
    store_le<std::uint64_t>(buffer.data() + offset, 0x1122334455667788);
    EXPECT_EQ(load_le<std::uint64_t>(buffer.data() + offset), 0x1122334455667788U);
  }
}

TEST(BytesTest, IsZeroFindsASingleBitAnywhere) {
  EXPECT_TRUE(is_zero({}));
  for (const std::size_t size : {1, 15, 16, 17, 31, 32, 33, 4096}) {
    std::vector<std::byte> buffer(size);
    EXPECT_TRUE(is_zero(buffer)) << size;
    for (std::size_t i = 0; i < size; i += (size > 100 ? 97 : 1)) {
      buffer[i] = std::byte{0x80};
      EXPECT_FALSE(is_zero(buffer)) << size << " at " << i;
      buffer[i] = std::byte{0};
    }
    buffer[size - 1] = std::byte{1};
    EXPECT_FALSE(is_zero(buffer)) << size;
  }
}

TEST(BytesTest, AReaderStopsForGoodAtTheFirstFieldThatIsNotThere) {
  const std::array<std::byte, 7> buffer{std::byte{1}, std::byte{0}, std::byte{2}, std::byte{0},
                                        std::byte{3}};
  Reader reader(buffer);
  EXPECT_EQ(reader.le<std::uint16_t>(), 1U);
  EXPECT_EQ(reader.remaining(), 5U);
  EXPECT_EQ(reader.le<std::uint64_t>(), 0U);
  EXPECT_FALSE(reader.ok());
  EXPECT_EQ(reader.le<std::uint16_t>(), 0U) << "would have fit, but the reader has failed";
  EXPECT_TRUE(reader.raw(1).empty());
}

TEST(BytesTest, AReaderIsNotFooledByHugeLengths) {
  const std::array<std::byte, 4> buffer{};
  Reader reader(buffer);
  static_cast<void>(reader.le<std::uint8_t>());
  EXPECT_TRUE(reader.raw(SIZE_MAX).empty());
  EXPECT_FALSE(reader.ok());
}

TEST(BytesTest, AReaderGivesAllOfItsBytes) {
  const std::array<std::byte, 3> buffer{std::byte{9}, std::byte{8}, std::byte{7}};
  Reader reader(buffer);
  EXPECT_EQ(reader.raw(3).data(), buffer.data());
  EXPECT_TRUE(reader.ok());
  EXPECT_EQ(reader.remaining(), 0U);
  EXPECT_TRUE(reader.raw(0).empty());
  EXPECT_TRUE(reader.ok());
}

TEST(BytesTest, AWriterStopsForGoodAtTheFirstFieldThatDoesNotFit) {
  std::array<std::byte, 5> buffer{};
  Writer writer(buffer);
  writer.le<std::uint32_t>(0x04030201);
  EXPECT_EQ(writer.position(), 4U);
  writer.le<std::uint16_t>(0xffff);
  EXPECT_FALSE(writer.ok());
  writer.le<std::uint8_t>(0xff);
  EXPECT_EQ(buffer[3], std::byte{4});
  EXPECT_EQ(buffer[4], std::byte{0}) << "written after the writer has failed";
}

TEST(BytesTest, AWriterTakesRawBytesAndNone) {
  std::array<std::byte, 4> buffer{};
  Writer writer(buffer);
  writer.raw({});
  writer.raw(as_bytes("abcd"));
  EXPECT_TRUE(writer.ok());
  EXPECT_EQ(as_text(buffer), "abcd");
}

TEST(AlignedBufferTest, IsPageAlignedAndOwnsItsSize) {
  for (const std::size_t size : {0, 1, 4096, 4097, 1 << 20}) {
    const AlignedBuffer buffer(size);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % AlignedBuffer::alignment, 0U);
    EXPECT_EQ(buffer.size(), size);
  }
  EXPECT_TRUE(is_zero(AlignedBuffer::zeroed(10'000).bytes()));
  EXPECT_FALSE(AlignedBuffer());
}

TEST(ChecksumTest, IsXxh3OfTheBytes) {
  // XXH3_64bits of the empty input, from the specification's test vectors.
  EXPECT_EQ(checksum64({}), 0x2d06800538d394c2U);
  EXPECT_NE(checksum64(as_bytes("a")), checksum64(as_bytes("b")));
}

}  // namespace
}  // namespace berth
