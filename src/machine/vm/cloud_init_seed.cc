#include "machine/vm/cloud_init_seed.h"

#include <array>
#include <cerrno>
#include <filesystem>
#include <memory>

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/fd.h"
#include "base/units.h"

namespace berth::machine {
namespace {

// ECMA-119 (ISO 9660), sections 6.2.1, 8.1, 8.4 and 9.1.
constexpr std::size_t sector_size = 2048;
constexpr std::size_t first_descriptor = 16;  // sectors
constexpr char descriptor_primary = 1;
constexpr char descriptor_supplementary = 2;  // Joliet's
constexpr char descriptor_terminator = static_cast<char>(255);
constexpr std::size_t label_offset = 40;  // in a descriptor
constexpr std::size_t root_record_offset = 156;
constexpr std::size_t record_extent_offset = 2;  // in a directory record: a sector
constexpr std::size_t record_date_offset = 18;
constexpr std::string_view fixed_date{"\x64\x01\x01\x00\x00\x00\x00", 7};  // since 1900; zone last
constexpr std::size_t times_offset = 813;  // in a descriptor: creation, change, expiry, effect
constexpr std::string_view fixed_time{"2000010100000000\0", 17};
constexpr std::string_view no_time{"0000000000000000\0", 17};

constexpr std::string_view label = "cidata";
constexpr std::string_view information = "INFO ";

constexpr std::size_t image_bytes_max = std::size_t{8}
                                        << 20;  // a specification has 512 KiB at most

struct WriterClose {
  void operator()(archive* writer) const { ::archive_write_free(writer); }
};
using Writer = std::unique_ptr<archive, WriterClose>;

struct EntryFree {
  void operator()(archive_entry* entry) const { ::archive_entry_free(entry); }
};
using Entry = std::unique_ptr<archive_entry, EntryFree>;

/// Called by libarchive with the next bytes of the image.
la_ssize_t append(archive* writer, void* image, const void* bytes, std::size_t length) {
  auto& into = *static_cast<std::string*>(image);
  if (length > image_bytes_max - into.size()) {
    ::archive_set_error(writer, EFBIG, "the image has more than %zu bytes", image_bytes_max);
    return -1;
  }
  into.append(static_cast<const char*>(bytes), length);
  return static_cast<la_ssize_t>(length);
}

Result<void> require(archive* writer, int status) {
  if (status == ARCHIVE_OK) return {};
  const char* reason = ::archive_error_string(writer);
  return failure(ErrorKind::io_error, fmt::format("libarchive cannot make the image: {}",
                                                  reason == nullptr ? "out of memory" : reason));
}

Result<void> add_file(archive* writer, const char* name, std::string_view content) {
  const Entry entry(::archive_entry_new());
  CHECK(entry != nullptr);
  ::archive_entry_set_pathname(entry.get(), name);
  ::archive_entry_set_filetype(entry.get(), AE_IFREG);
  ::archive_entry_set_perm(entry.get(), 0444);
  ::archive_entry_set_nlink(entry.get(), 1);
  ::archive_entry_set_size(entry.get(), static_cast<la_int64_t>(content.size()));
  TRY(require(writer, ::archive_write_header(writer, entry.get())));
  while (!content.empty()) {
    const la_ssize_t written = ::archive_write_data(writer, content.data(), content.size());
    if (written <= 0) return require(writer, ARCHIVE_FATAL);
    content.remove_prefix(static_cast<std::size_t>(written));
  }
  return {};
}

/// In its volume descriptors libarchive has the time at which it ran, and the primary label in
/// capital letters, as ISO 9660 has it; the NoCloud of old looks for small ones. In the sector
/// after them, which nothing refers to, it says when and how it made the image.
void fix_descriptors(std::string& image) {
  for (std::size_t at = first_descriptor * sector_size; at + 2 * sector_size <= image.size();
       at += sector_size) {
    const char type = image[at];
    if (type == descriptor_terminator) {
      if (image.compare(at + sector_size, information.size(), information) == 0)
        image.replace(at + sector_size, sector_size, sector_size, '\0');
      return;
    }
    if (type != descriptor_primary && type != descriptor_supplementary) continue;
    if (type == descriptor_primary) image.replace(at + label_offset, label.size(), label);
    std::size_t field = at + times_offset;
    for (const std::string_view time : {fixed_time, fixed_time, no_time, fixed_time}) {
      image.replace(field, time.size(), time);
      field += time.size();
    }
  }
}

/// Directory records have the time at which libarchive ran (of the root) or none (of files), in the
/// time zone of whoever ran it. `metadata` is what comes before the files' contents.
void fix_dates(std::string& image, std::size_t metadata) {
  const auto number = [&image](std::size_t at) {
    return load_le<std::uint32_t>(reinterpret_cast<const std::byte*>(image.data() + at));
  };
  const std::size_t root = first_descriptor * sector_size + root_record_offset;
  CHECK(root + sector_size <= metadata && metadata <= image.size());
  // The records "." and "..", then that of a file. All files have the same date.
  std::size_t record = std::size_t{number(root + record_extent_offset)} * sector_size;
  for (int skipped = 0; skipped < 2; ++skipped) {
    CHECK(record + record_date_offset + fixed_date.size() <= metadata);
    record += static_cast<unsigned char>(image[record]);
  }
  for (const std::size_t of : {root, record}) {
    const std::string date = image.substr(of + record_date_offset, fixed_date.size());
    for (std::size_t at = image.find(date); at < metadata; at = image.find(date, at + date.size()))
      image.replace(at, date.size(), fixed_date);
  }
}

Result<std::string> make_image(const CloudInitSpecification& cloud_init,
                               std::string_view meta_data) {
  std::string image;
  const Writer writer(::archive_write_new());
  CHECK(writer != nullptr);
  TRY(require(writer.get(), ::archive_write_set_format_iso9660(writer.get())));
  // rockridge=useful: all belongs to root, whoever writes. Nothing of libarchive's version or of
  // the volume's size gets into the image.
  TRY(require(writer.get(), ::archive_write_set_options(writer.get(),
                                                        "volume-id=cidata,joliet,rockridge=useful,"
                                                        "application-id=berth,!pad")));
  TRY(require(writer.get(), ::archive_write_set_bytes_per_block(writer.get(), 0)));
  TRY(require(writer.get(), ::archive_write_open(writer.get(), &image, nullptr, append, nullptr)));
  std::size_t contents = 0;
  const std::array<std::pair<const char*, std::string_view>, 3> files = {
      {{"user-data", cloud_init.user_data},
       {"meta-data", meta_data},
       {"network-config", cloud_init.network_config}}};
  for (const auto& [name, content] : files) {
    if (name == files.back().first && content.empty()) continue;
    TRY(add_file(writer.get(), name, content));
    contents += round_up(content.size(), sector_size);
  }
  TRY(require(writer.get(), ::archive_write_close(writer.get())));
  fix_descriptors(image);
  fix_dates(image, image.size() - contents);
  return image;
}

Result<void> write_whole(const std::string& path, std::string_view content) {
  const Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return errno_failure(errno, "cannot create it");
  while (!content.empty()) {
    const ssize_t written = ::write(fd.get(), content.data(), content.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno_failure(errno, "cannot write");
    content.remove_prefix(static_cast<std::size_t>(written));
  }
  if (::fsync(fd.get()) != 0) return errno_failure(errno, "cannot sync");
  return {};
}

/// Gives what is at `temporary` the name `path` too, which nothing may have yet.
Result<void> link_new(const std::string& temporary, const std::string& path) {
  if (::link(temporary.c_str(), path.c_str()) != 0) {
    if (errno == EEXIST) return failure(ErrorKind::already_exists, "it is there already");
    return errno_failure(errno, "cannot link");
  }
  const std::string parent = std::filesystem::path(path).parent_path();
  const Fd directory(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory && ::fsync(directory.get()) == 0) return {};
  const int cause = errno;
  ::unlink(path.c_str());
  return errno_failure(cause, "cannot sync the directory");
}

}  // namespace

std::string default_meta_data(std::string_view machine_name, const Id128& machine_id) {
  // A machine's name may have what a host's may not (RFC 1123, section 2.1).
  std::string host(machine_name);
  for (char& c : host)
    if (c == '_') c = '-';
  while (host.ends_with('-') || host.ends_with('.')) host.pop_back();
  // In quotes: YAML would take "12" for a number.
  return fmt::format("instance-id: \"{}\"\nlocal-hostname: \"{}\"\n", machine_id.to_string(), host);
}

Result<void> write_seed_image(const CloudInitSpecification& cloud_init,
                              std::string_view machine_name, const Id128& machine_id,
                              const std::string& path) {
  const auto explain = [&path](Error error) {
    return failure(
        std::move(error).with_context(fmt::format("cannot write the seed image '{}'", path)));
  };
  auto image = make_image(cloud_init, cloud_init.meta_data.empty()
                                          ? default_meta_data(machine_name, machine_id)
                                          : cloud_init.meta_data);
  if (!image) return explain(std::move(image).error());
  const std::string temporary = path + ".new";
  auto written = write_whole(temporary, *image);
  if (written) written = link_new(temporary, path);
  ::unlink(temporary.c_str());
  if (!written) return explain(std::move(written).error());
  return {};
}

}  // namespace berth::machine
