#include "nbd/codec.h"

#include <array>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nbd/wire.h"

namespace berth::nbd {
namespace {

constexpr std::uint64_t cookie = 0x1122334455667788;

/// A client of a writable export of 1 MiB that has negotiated everything.
Session full_session() {
  return {.size = MiB,
          .transmission_flags = transmission_flags(ExportInfo{}, true),
          .structured_replies = true,
          .context_count = 1};
}

WireError verdict(const Request& request, const Session& session = full_session()) {
  return check_request(request, session).error;
}

std::vector<std::byte> bytes_of(const std::vector<int>& values) {
  std::vector<std::byte> bytes;
  for (const int value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

template <std::size_t size>
std::vector<std::byte> first(const std::array<std::byte, size>& bytes, std::size_t length) {
  return {bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length)};
}

TEST(Codec, ParsesARequestFieldByField) {
  const auto bytes = bytes_of({0x25, 0x60, 0x95, 0x13, 0x00, 0x05, 0x00, 0x06, 0x11, 0x22,
                               0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x00, 0x00, 0x00, 0x01,
                               0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x20, 0x00});
  const auto request =
      parse_request(std::span<const std::byte, request_size>(bytes.data(), request_size));
  ASSERT_TRUE(request);
  EXPECT_EQ(request->flags, command_flag_fua | command_flag_df);
  EXPECT_EQ(request->type, Command::write_zeroes);
  EXPECT_EQ(request->cookie, cookie);
  EXPECT_EQ(request->offset, 0x100001000U);
  EXPECT_EQ(request->length, 0x2000U);
}

TEST(Codec, RefusesARequestWithAnotherMagicNumber) {
  std::vector<std::byte> bytes = wire_request({}).bytes();
  bytes[3] ^= std::byte{1};
  const auto request =
      parse_request(std::span<const std::byte, request_size>(bytes.data(), request_size));
  ASSERT_FALSE(request);
  EXPECT_EQ(request.error().kind(), ErrorKind::protocol);
}

TEST(Codec, AcceptsWhatWasNegotiated) {
  for (const Command type : {Command::read, Command::write, Command::trim, Command::write_zeroes,
                             Command::block_status}) {
    EXPECT_EQ(verdict({.type = type, .offset = 4096, .length = 4096}), WireError::none);
    EXPECT_EQ(verdict({.flags = command_flag_fua, .type = type, .offset = 0, .length = MiB}),
              WireError::none);
  }
  EXPECT_EQ(verdict({.type = Command::flush}), WireError::none);
}

TEST(Codec, AcceptsZeroLengthWhereItMeansSomething) {
  for (const Command type : {Command::read, Command::write, Command::trim, Command::write_zeroes}) {
    EXPECT_EQ(verdict({.type = type, .offset = MiB}), WireError::none);
    EXPECT_NE(verdict({.type = type, .offset = MiB + 1}), WireError::none);
  }
  EXPECT_EQ(verdict({.type = Command::block_status}), WireError::invalid);
}

TEST(Codec, RefusesWhatReachesBeyondTheEndWithTheErrorOfItsCommand) {
  for (const auto& [offset, length] : {std::pair<std::uint64_t, std::uint32_t>{MiB - 1, 2},
                                       {MiB + 1, 0},
                                       {~0ULL, 1},
                                       {~0ULL - 10, 4096}}) {
    EXPECT_EQ(verdict({.type = Command::read, .offset = offset, .length = length}),
              WireError::invalid);
    EXPECT_EQ(verdict({.type = Command::trim, .offset = offset, .length = length}),
              WireError::invalid);
    EXPECT_EQ(verdict({.type = Command::write, .offset = offset, .length = length}),
              WireError::no_space);
    EXPECT_EQ(verdict({.type = Command::write_zeroes, .offset = offset, .length = length}),
              WireError::no_space);
  }
  EXPECT_EQ(verdict({.type = Command::block_status, .offset = MiB - 1, .length = 2}),
            WireError::invalid);
}

TEST(Codec, RefusesPayloadsAboveTheMaximumAndNothingElseForItsLength) {
  Session session = full_session();
  session.size = 8 * GiB;
  const auto most = static_cast<std::uint32_t>(payload_length_max);
  EXPECT_EQ(verdict({.type = Command::read, .length = most}, session), WireError::none);
  EXPECT_EQ(verdict({.type = Command::write, .length = most}, session), WireError::none);
  EXPECT_EQ(verdict({.type = Command::read, .length = most + 1}, session), WireError::overflow);
  EXPECT_EQ(verdict({.type = Command::write, .length = most + 1}, session), WireError::invalid);
  for (const Command type : {Command::trim, Command::write_zeroes, Command::block_status}) {
    EXPECT_EQ(verdict({.type = type, .length = ~0U}, session), WireError::none);
  }
  session.structured_replies = false;
  EXPECT_EQ(verdict({.type = Command::read, .length = most + 1}, session), WireError::invalid);
}

TEST(Codec, RefusesWhatIsNotAlignedToTheMinimumBlockSize) {
  Session session = full_session();
  session.block_minimum = 512;
  for (const Command type : {Command::read, Command::write, Command::trim, Command::write_zeroes,
                             Command::block_status}) {
    EXPECT_EQ(verdict({.type = type, .offset = 512, .length = 1024}, session), WireError::none);
    EXPECT_EQ(verdict({.type = type, .offset = 511, .length = 512}, session), WireError::invalid);
    EXPECT_EQ(verdict({.type = type, .offset = 512, .length = 513}, session), WireError::invalid);
  }
}

TEST(Codec, RefusesAllChangesOfAReadOnlyExport) {
  Session session = full_session();
  session.transmission_flags = transmission_flags(ExportInfo{.read_only = true}, true);
  for (const Command type : {Command::write, Command::trim, Command::write_zeroes}) {
    EXPECT_EQ(verdict({.type = type, .length = 512}, session), WireError::permission);
  }
  EXPECT_EQ(verdict({.type = Command::read, .length = 512}, session), WireError::none);
  EXPECT_EQ(verdict({.type = Command::flush}, session), WireError::none);
}

TEST(Codec, RefusesFlagsThatACommandDoesNotHave) {
  const auto with = [](Command type, unsigned flags) {
    return verdict({.flags = static_cast<std::uint16_t>(flags),
                    .type = type,
                    .length = type == Command::flush ? 0U : 4096U});
  };
  EXPECT_EQ(with(Command::read, command_flag_df), WireError::none);
  EXPECT_EQ(with(Command::write, command_flag_df), WireError::invalid);
  EXPECT_EQ(with(Command::write_zeroes, command_flag_no_hole | command_flag_fast_zero),
            WireError::none);
  EXPECT_EQ(with(Command::trim, command_flag_no_hole), WireError::invalid);
  EXPECT_EQ(with(Command::block_status, command_flag_req_one), WireError::none);
  EXPECT_EQ(with(Command::read, command_flag_req_one), WireError::invalid);
  for (unsigned bit = 5; bit < 16; ++bit) {
    for (unsigned type = 0; type < 8; ++type) {
      EXPECT_EQ(with(static_cast<Command>(type), 1U << bit), WireError::invalid)
          << bit << " " << type;
    }
  }
}

TEST(Codec, RefusesWhatWasNotOffered) {
  Session session = full_session();
  session.transmission_flags =
      transmission_flags(ExportInfo{.can_discard = false, .can_fast_zero = false}, false);
  session.structured_replies = false;
  session.context_count = 0;
  EXPECT_EQ(verdict({.type = Command::trim, .length = 1}, session), WireError::invalid);
  EXPECT_EQ(verdict({.flags = command_flag_df, .type = Command::read, .length = 1}, session),
            WireError::invalid);
  EXPECT_EQ(verdict({.flags = command_flag_fast_zero, .type = Command::write_zeroes, .length = 1},
                    session),
            WireError::invalid);
  EXPECT_EQ(verdict({.type = Command::block_status, .length = 1}, session), WireError::invalid);
  EXPECT_EQ(verdict({.type = Command::cache, .length = 1}), WireError::invalid);
  EXPECT_EQ(verdict({.type = static_cast<Command>(9), .length = 1}), WireError::invalid);
  EXPECT_EQ(verdict({.type = Command::flush, .offset = 1}), WireError::invalid);
}

TEST(Codec, AdvertisesWhatAnExportCanDo) {
  const unsigned always = flag_has_flags | flag_send_flush | flag_send_fua | flag_can_multi_conn;
  EXPECT_EQ(transmission_flags(ExportInfo{}, true),
            always | flag_send_df | flag_send_trim | flag_send_write_zeroes | flag_send_fast_zero);
  EXPECT_EQ(transmission_flags(ExportInfo{.read_only = true}, false), always | flag_read_only);
  EXPECT_EQ(transmission_flags(ExportInfo{.can_discard = false, .can_zero = false}, false), always);
}

TEST(Codec, GivesEveryKindOfErrorItsNumber) {
  const Request write{.type = Command::write};
  const Request zero{.type = Command::write_zeroes};
  const Request fast_zero{.flags = command_flag_fast_zero, .type = Command::write_zeroes};
  EXPECT_EQ(wire_error(ErrorKind::no_space, write), WireError::no_space);
  EXPECT_EQ(wire_error(ErrorKind::read_only, write), WireError::permission);
  EXPECT_EQ(wire_error(ErrorKind::invalid_argument, write), WireError::invalid);
  EXPECT_EQ(wire_error(ErrorKind::limit, write), WireError::no_space);
  EXPECT_EQ(wire_error(ErrorKind::corrupt, write), WireError::io);
  EXPECT_EQ(wire_error(ErrorKind::internal, write), WireError::io);
  EXPECT_EQ(wire_error(ErrorKind::unsupported, fast_zero), WireError::unsupported);
  EXPECT_EQ(wire_error(ErrorKind::unsupported, zero), WireError::invalid);
}

TEST(Codec, EncodesASimpleReply) {
  std::array<std::byte, reply_header_size_max> header{};
  const std::size_t size = encode_simple_reply(header, cookie, WireError::no_space);
  EXPECT_EQ(first(header, size), bytes_of({0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0x11, 0x22, 0x33,
                                           0x44, 0x55, 0x66, 0x77, 0x88}));
}

TEST(Codec, EncodesChunksOfAStructuredReply) {
  std::array<std::byte, reply_header_size_max> header{};
  std::size_t size = encode_none(header, cookie);
  EXPECT_EQ(first(header, size), bytes_of({0x66, 0x8e, 0x33, 0xef, 0,    1,    0, 0, 0x11, 0x22,
                                           0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0, 0, 0,    0}));
  size = encode_offset_data(header, cookie, Chunk::more, 0x10000, 0x200);
  EXPECT_EQ(first(header, size),
            bytes_of({0x66, 0x8e, 0x33, 0xef, 0, 0, 0, 1, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66,
                      0x77, 0x88, 0,    0,    2, 8, 0, 0, 0,    0,    0,    1,    0,    0}));
  size = encode_offset_hole(header, cookie, Chunk::done, 0x10000, 0x200);
  EXPECT_EQ(size, header.size());
  EXPECT_EQ(first(header, size), bytes_of({0x66, 0x8e, 0x33, 0xef, 0,    1, 0, 2, 0x11, 0x22, 0x33,
                                           0x44, 0x55, 0x66, 0x77, 0x88, 0, 0, 0, 12,   0,    0,
                                           0,    0,    0,    1,    0,    0, 0, 0, 2,    0}));
}

TEST(Codec, EncodesErrorsWithTheirMessageAndOffset) {
  std::array<std::byte, error_chunk_size_max> chunk{};
  std::size_t size = encode_error(chunk, cookie, Chunk::done, WireError::io, "no");
  EXPECT_EQ(first(chunk, size),
            bytes_of({0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66,
                      0x77, 0x88, 0,    0,    0, 8, 0,    0, 0,    5,    0,    2,    'n',  'o'}));
  size = encode_error(chunk, cookie, Chunk::more, WireError::io, "no", 0x1000);
  EXPECT_EQ(first(chunk, size),
            bytes_of({0x66, 0x8e, 0x33, 0xef, 0, 0, 0x80, 2,  0x11, 0x22, 0x33, 0x44,
                      0x55, 0x66, 0x77, 0x88, 0, 0, 0,    16, 0,    0,    0,    5,
                      0,    2,    'n',  'o',  0, 0, 0,    0,  0,    0,    0x10, 0}));
  size = encode_error(chunk, cookie, Chunk::done, WireError::io, std::string(100'000, 'x'), 1);
  EXPECT_EQ(size, error_chunk_size_max);
}

/// The descriptors of a block status chunk, after its fixed part has been checked.
std::vector<std::pair<std::uint32_t, std::uint32_t>> status_of(
    const std::vector<StatusExtent>& extents, std::uint32_t length_max) {
  std::vector<std::byte> chunk(block_status_size(extents.size()));
  const std::size_t size = encode_block_status(chunk, cookie, Chunk::done, 7, extents, length_max);
  std::vector<std::pair<std::uint32_t, std::uint32_t>> descriptors;
  if (size == 0) return descriptors;
  WireReader reader(Bytes(chunk).first(size));
  EXPECT_EQ(reader.number<std::uint32_t>(), structured_reply_magic);
  EXPECT_EQ(reader.number<std::uint16_t>(), reply_flag_done);
  EXPECT_EQ(reader.number<std::uint16_t>(), 5U);
  EXPECT_EQ(reader.number<std::uint64_t>(), cookie);
  EXPECT_EQ(reader.number<std::uint32_t>(), reader.left());
  EXPECT_EQ(reader.number<std::uint32_t>(), 7U);
  while (reader.left() != 0) {
    const auto length = reader.number<std::uint32_t>();
    descriptors.emplace_back(length, reader.number<std::uint32_t>());
  }
  EXPECT_TRUE(reader.ok());
  return descriptors;
}

TEST(Codec, EncodesBlockStatusAndJoinsWhatIsEqual) {
  using testing::ElementsAre;
  using testing::IsEmpty;
  using testing::Pair;
  EXPECT_THAT(status_of({{4096, 0}, {8192, 3}}, 65536), ElementsAre(Pair(4096, 0), Pair(8192, 3)));
  EXPECT_THAT(status_of({{4096, 0}, {8192, 0}, {1, 1}, {1, 0}}, 65536),
              ElementsAre(Pair(12288, 0), Pair(1, 1), Pair(1, 0)));
}

TEST(Codec, CutsBlockStatusAtTheEndOfTheRequest) {
  using testing::ElementsAre;
  using testing::IsEmpty;
  using testing::Pair;
  EXPECT_THAT(status_of({{4096, 0}, {1ULL << 40, 3}, {5, 0}}, 5000),
              ElementsAre(Pair(4096, 0), Pair(904, 3)));
  EXPECT_THAT(status_of({{1ULL << 40, 3}}, ~0U), ElementsAre(Pair(~0U, 3)));
  EXPECT_THAT(status_of({{3ULL << 30, 3}, {3ULL << 30, 3}}, ~0U), ElementsAre(Pair(~0U, 3)));
  EXPECT_THAT(status_of({}, 5000), IsEmpty());
  EXPECT_THAT(status_of({{0, 0}, {5, 0}}, 5000), IsEmpty());
}

}  // namespace
}  // namespace berth::nbd
