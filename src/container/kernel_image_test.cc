#include "container/kernel_image.h"

#include <memory>
#include <string>

#include <archive.h>
#include <archive_entry.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "container/fake_kernel.h"

namespace berth::container {
namespace {

using testing::HasSubstr;

std::string compressed(const std::string& bytes, int (*add_filter)(archive*)) {
  std::string packed(bytes.size() + 4096, '\0');
  std::size_t used = 0;
  const std::unique_ptr<archive, int (*)(archive*)> writer(::archive_write_new(),
                                                           &::archive_write_free);
  EXPECT_EQ(add_filter(writer.get()), ARCHIVE_OK);
  ::archive_write_set_format_raw(writer.get());
  ::archive_write_set_bytes_in_last_block(writer.get(), 1);
  EXPECT_EQ(::archive_write_open_memory(writer.get(), packed.data(), packed.size(), &used),
            ARCHIVE_OK);
  const std::unique_ptr<archive_entry, void (*)(archive_entry*)> entry(::archive_entry_new(),
                                                                       &::archive_entry_free);
  ::archive_entry_set_filetype(entry.get(), AE_IFREG);
  EXPECT_EQ(::archive_write_header(writer.get(), entry.get()), ARCHIVE_OK);
  EXPECT_EQ(::archive_write_data(writer.get(), bytes.data(), bytes.size()),
            static_cast<la_ssize_t>(bytes.size()));
  EXPECT_EQ(::archive_write_close(writer.get()), ARCHIVE_OK);
  packed.resize(used);
  return packed;
}

TEST(KernelImage, IsUnpackedHoweverItIsCompressed) {
  const std::string kernel = make_kernel();
  EXPECT_EQ(
      MUST(unpack_kernel(make_image(compressed(kernel, &::archive_write_add_filter_gzip), ""))),
      kernel);
  EXPECT_EQ(
      MUST(unpack_kernel(make_image(compressed(kernel, &::archive_write_add_filter_xz), "size"))),
      kernel);
  EXPECT_EQ(
      MUST(unpack_kernel(make_image(compressed(kernel, &::archive_write_add_filter_zstd), "size"))),
      kernel);
  EXPECT_EQ(MUST(unpack_kernel(make_image(lz4_legacy(kernel), "size"))), kernel);
}

std::string refusal(const std::string& image) {
  const auto unpacked = unpack_kernel(image);
  EXPECT_FALSE(unpacked);
  if (unpacked) return "";
  EXPECT_EQ(unpacked.error().kind(), ErrorKind::unsupported);
  return unpacked.error().message();
}

TEST(KernelImage, WithoutAnEntryForItIsRefused) {
  for (const std::string& kernel :
       {make_kernel(17), make_kernel(18, std::string("Abc\0", 4)), std::string(5000, 'k')})
    EXPECT_THAT(refusal(make_image(lz4_legacy(kernel), "size")), HasSubstr("no entry"));
}

TEST(KernelImage, WhatIsNoneIsRefused) {
  EXPECT_THAT(refusal(""), HasSubstr("no bzImage"));
  EXPECT_THAT(refusal(std::string(100'000, 'x')), HasSubstr("no bzImage"));
  std::string old = make_image(lz4_legacy(make_kernel()), "size");
  put(old, 0x206, std::uint16_t{0x207});
  EXPECT_THAT(refusal(old), HasSubstr("no bzImage"));
}

TEST(KernelImage, CutOffAnywhereItIsRefused) {
  const std::string image =
      make_image(compressed(make_kernel(), &::archive_write_add_filter_xz), "size");
  for (std::size_t length = 0; length + 21 < image.size(); length += 1 + length / 20)
    EXPECT_NE(refusal(image.substr(0, length)), "") << length;
}

TEST(KernelImage, WithAnyByteChangedItEndsSomehow) {
  const std::string kernel = make_kernel();
  const std::string head = kernel.substr(0, 0x1040);
  for (std::size_t at = 0; at < head.size(); at += at < 256 ? 1 : 61) {
    std::string damaged = head;
    damaged[at] = static_cast<char>(damaged[at] ^ 0xff);
    (void)unpack_kernel(make_image(lz4_legacy(damaged), "size"));
  }
}

}  // namespace
}  // namespace berth::container
