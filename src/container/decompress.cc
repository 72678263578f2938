#include "container/decompress.h"

#include <array>
#include <cerrno>
#include <memory>

#include <archive.h>
#include <archive_entry.h>

#include <fmt/format.h>

namespace berth::container {
namespace {

constexpr std::size_t block = std::size_t{64} << 10;

/// `open` gives the reader something to read; ARCHIVE_OK or not. `what`: for errors.
template <typename Open>
Result<std::string> read_whole(Open open, std::string_view what, std::size_t bytes_max) {
  const std::unique_ptr<archive, int (*)(archive*)> reader(::archive_read_new(),
                                                           &::archive_read_free);
  const auto fail = [&] {
    const int why = ::archive_errno(reader.get());
    return errno_failure(why > 0 ? why : EIO, fmt::format("cannot read {}", what));
  };
  ::archive_read_support_filter_all(reader.get());
  ::archive_read_support_format_raw(reader.get());
  archive_entry* entry = nullptr;
  if (open(reader.get()) != ARCHIVE_OK ||
      ::archive_read_next_header(reader.get(), &entry) != ARCHIVE_OK)
    return fail();
  std::string content;
  std::array<char, block> buffer{};
  while (true) {
    const la_ssize_t count = ::archive_read_data(reader.get(), buffer.data(), buffer.size());
    if (count < 0) return fail();
    if (count == 0) return content;
    content.append(buffer.data(), static_cast<std::size_t>(count));
    if (content.size() > bytes_max)
      return failure(ErrorKind::limit, fmt::format("{} has more than {} bytes", what, bytes_max));
  }
}

}  // namespace

Result<std::string> decompress(std::string_view bytes, std::size_t bytes_max) {
  return read_whole(
      [bytes](archive* reader) {
        return ::archive_read_open_memory(reader, bytes.data(), bytes.size());
      },
      "what is compressed", bytes_max);
}

Result<std::string> decompress_file(const std::string& path, std::size_t bytes_max) {
  return read_whole(
      [&path](archive* reader) {
        return ::archive_read_open_filename(reader, path.c_str(), block);
      },
      path, bytes_max);
}

}  // namespace berth::container
