#include "container/image_store.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <set>
#include <tuple>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/directories.h"
#include "base/fault_point.h"
#include "base/fd.h"
#include "base/ids.h"
#include "base/log.h"
#include "container/image_name.h"
#include "machine/small_file.h"
#include "machine/volume_directory.h"

namespace berth::container {
namespace {

using machine::names_in;
using machine::path_exists;

constexpr std::string_view making_prefix = ".making-";
constexpr std::string_view removing_prefix = ".removing-";
constexpr const char* manifest_type = "application/vnd.oci.image.manifest.v1+json";
constexpr const char* layout_document = "{\"imageLayoutVersion\": \"1.0.0\"}\n";
constexpr const char* record_name = "/image.json";
constexpr const char* file_system_name = "/rootfs.erofs";

std::string digits_of(const std::string& digest) { return std::string(digest_digits(digest)); }

std::uint64_t space_of(const std::string& path) {
  struct stat status{};
  return ::lstat(path.c_str(), &status) == 0 ? static_cast<std::uint64_t>(status.st_blocks) * 512
                                             : 0;
}

Result<void> sync_file(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd || ::fsync(fd.get()) != 0)
    return errno_failure(errno, fmt::format("cannot sync '{}'", path));
  return {};
}

/// One that can be read again.
Result<void> write_document(const std::string& path, const std::string& text) {
  if (text.size() > machine::small_file_size_max) {
    return failure(ErrorKind::limit, fmt::format("'{}' would have more than {} bytes", path,
                                                 machine::small_file_size_max));
  }
  return machine::write_small_file(path, text);
}

/// A second name of a file; it may have that name already.
Result<void> link_file(const std::string& from, const std::string& to) {
  if (::link(from.c_str(), to.c_str()) == 0 || errno == EEXIST) return {};
  return errno_failure(errno, fmt::format("cannot make the link '{}'", to));
}

bool is_at(const Descriptor& entry, const std::string& digest) { return entry.digest == digest; }

bool has(const std::vector<Descriptor>& entries, const std::string& digest) {
  return std::ranges::any_of(entries,
                             [&](const Descriptor& entry) { return is_at(entry, digest); });
}

/// Gives the image the name, which another one loses. An image without a name has one entry, and
/// one with names has no other than those.
void add_entry(std::vector<Descriptor>& entries, const ImageRecord& record,
               const std::string& name) {
  for (Descriptor& entry : entries) {
    if (!name.empty() && entry.name == name) entry.name.clear();
  }
  entries.push_back({.media_type = manifest_type,
                     .digest = record.digest,
                     .size = record.manifest_size,
                     .name = name});
  std::set<std::string> shown;
  for (const Descriptor& entry : entries) {
    if (!entry.name.empty()) shown.insert(entry.digest);
  }
  std::erase_if(entries, [&shown](const Descriptor& entry) {
    return entry.name.empty() && !shown.insert(entry.digest).second;
  });
}

/// What a reference stands for.
struct Resolved {
  std::string digest;
  std::string name;  // that it was named by, "" for a digest
};

Result<Resolved> resolve(const std::vector<Descriptor>& entries, const std::string& reference) {
  const auto name = parse_image_name(reference);
  if (name) {
    const auto named = std::ranges::find(entries, name->text(), &Descriptor::name);
    if (named != entries.end()) return Resolved{named->digest, named->name};
  }
  std::set<std::string> found;
  const std::string_view digits = digest_digits(reference);
  for (const Descriptor& entry : entries) {
    if (!digits.empty() && digest_digits(entry.digest).starts_with(digits))
      found.insert(entry.digest);
  }
  if (found.size() == 1) return Resolved{*found.begin(), {}};
  if (found.size() > 1) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("the digests of {} images begin with '{}': give more of it",
                               found.size(), digits));
  }
  if (!name && digits.empty()) return failure(name.error());
  return failure(ErrorKind::not_found,
                 fmt::format("there is no image '{}'", name ? name->text() : reference));
}

}  // namespace

ImageStore::Scratch::~Scratch() {
  if (path_.empty()) return;
  if (const auto removed = machine::remove_tree(path_); !removed)
    log_warning("{}", removed.error().message());
}

std::string ImageStore::Scratch::blob(const std::string& digest) const {
  return fmt::format("{}/blobs/sha256/{}", layout(), digest_digits(digest));
}

ImageStore::ImageStore(const std::string& state_dir) : path_(state_dir + "/images") {}

std::string ImageStore::blob(const std::string& digest) const {
  return fmt::format("{}/blobs/sha256/{}", path_, digest_digits(digest));
}
std::string ImageStore::unpacked(const std::string& digest) const {
  return fmt::format("{}/unpacked/{}", path_, digest_digits(digest));
}
std::string ImageStore::file_system(const std::string& digest) const {
  return unpacked(digest) + file_system_name;
}

Result<void> ImageStore::open() {
  const std::scoped_lock lock(mutex_);
  TRY(make_directories(path_ + "/blobs/sha256"));
  TRY(make_directories(path_ + "/unpacked"));
  if (!path_exists(path_ + "/oci-layout"))
    TRY(machine::write_small_file(path_ + "/oci-layout", layout_document));
  if (!path_exists(path_ + "/index.json")) TRY(save({}));
  const auto images = TRY(entries());
  for (const std::string& name : names_in(path_)) {
    if (name.starts_with(making_prefix) || name.starts_with(removing_prefix))
      TRY(machine::remove_tree(path_ + '/' + name));
  }
  for (const std::string& name : names_in(path_ + "/unpacked")) {
    if (!has(images, "sha256:" + name))
      TRY(machine::remove_tree(fmt::format("{}/unpacked/{}", path_, name)));
  }
  remove_blobs(images);
  return {};
}

Result<std::vector<Descriptor>> ImageStore::entries() const {
  const std::string path = path_ + "/index.json";
  const std::string text = TRY(machine::read_small_file(path));
  auto decoded = decode_index(text);
  if (!decoded)
    return failure(
        std::move(decoded).error().with_context(fmt::format("'{}' cannot be read", path)));
  return decoded;
}

Result<void> ImageStore::save(const std::vector<Descriptor>& entries) const {
  return write_document(path_ + "/index.json", encode_index(entries));
}

Result<ImageRecord> ImageStore::record(const std::vector<Descriptor>& entries,
                                       const std::string& digest) const {
  const std::string path = unpacked(digest) + record_name;
  const std::string text = TRY(machine::read_small_file(path));
  auto record = decode_image_record(text);
  if (!record)
    return failure(
        std::move(record).error().with_context(fmt::format("'{}' cannot be read", path)));
  for (const Descriptor& entry : entries) {
    if (is_at(entry, digest) && !entry.name.empty()) record->names.push_back(entry.name);
  }
  std::ranges::sort(record->names);
  return record;
}

Result<std::vector<ImageRecord>> ImageStore::list() const {
  const std::scoped_lock lock(mutex_);
  const auto images = TRY(entries());
  std::set<std::string> digests;
  for (const Descriptor& entry : images) digests.insert(entry.digest);
  std::vector<ImageRecord> records;
  for (const std::string& digest : digests) {
    auto found = record(images, digest);
    if (found)
      records.push_back(std::move(*found));
    else
      log_warning("the image {}: {}", digest, found.error().message());
  }
  std::ranges::sort(records, {}, [](const ImageRecord& image) {
    const std::string name = image.names.empty() ? std::string() : image.names.front();
    return std::tuple(name.empty(), name, image.digest);
  });
  return records;
}

Result<ImageRecord> ImageStore::find(const std::string& reference) const {
  const std::scoped_lock lock(mutex_);
  const auto images = TRY(entries());
  const Resolved resolved = TRY(resolve(images, reference));
  return record(images, resolved.digest);
}

bool ImageStore::contains(const std::string& digest) const {
  const std::scoped_lock lock(mutex_);
  const auto images = entries();
  return images && has(*images, digest);
}

Result<ImageStore::Scratch> ImageStore::begin() const {
  Scratch scratch(fmt::format("{}/{}{}", path_, making_prefix, SystemRandom().id().to_string()));
  const std::string blobs = scratch.layout() + "/blobs/sha256";
  for (const std::string& directory : {blobs, scratch.image(), scratch.path() + "/temporary"}) {
    std::error_code error;
    std::filesystem::create_directories(directory, error);
    if (error) return errno_failure(error.value(), fmt::format("cannot make '{}'", directory));
  }
  // What is there need not come again. A link of its own keeps it here while others delete images.
  const std::scoped_lock lock(mutex_);
  for (const std::string& digits : names_in(path_ + "/blobs/sha256"))
    TRY(link_file(fmt::format("{}/blobs/sha256/{}", path_, digits),
                  fmt::format("{}/{}", blobs, digits)));
  return scratch;
}

/// Everything of a new image, where nobody sees it yet.
Result<void> ImageStore::place(const Scratch& scratch, const ImageRecord& record) const {
  for (const std::string& digest : blobs_of(record))
    TRY(link_file(scratch.blob(digest), blob(digest)));
  TRY(machine::sync_directory(path_ + "/blobs/sha256"));
  fault_point("image.linked");
  TRY(machine::remove_tree(unpacked(record.digest)));  // of a failed attempt
  TRY(machine::rename_directory(scratch.image(), unpacked(record.digest)));
  TRY(machine::sync_directory(path_ + "/unpacked"));
  fault_point("image.moved");
  return {};
}

Result<bool> ImageStore::publish(const Scratch& scratch, const ImageRecord& record,
                                 const std::string& name) {
  const bool is_made = path_exists(scratch.image() + file_system_name);
  if (is_made) {
    TRY(write_document(scratch.image() + record_name, encode(record).dump(2) + '\n'));
    TRY(sync_file(scratch.image() + file_system_name));
    for (const std::string& digest : blobs_of(record)) TRY(sync_file(scratch.blob(digest)));
    TRY(machine::sync_directory(scratch.image()));
  }
  fault_point("image.made");
  const std::scoped_lock lock(mutex_);
  auto images = TRY(entries());
  const bool is_new = !has(images, record.digest);
  if (is_new && !is_made) return false;
  const auto before = images;
  const auto add = [&]() -> Result<void> {
    if (is_new) TRY(place(scratch, record));
    add_entry(images, record, name);
    return save(images);
  };
  auto added = add();
  if (!added) {
    if (is_new) (void)machine::remove_tree(unpacked(record.digest));
    remove_blobs(before);
    return failure(std::move(added).error());
  }
  fault_point("image.published");
  return true;
}

Result<RemovedImage> ImageStore::remove(const std::string& reference) {
  RemovedImage removed;
  std::optional<std::string> directory;
  {
    const std::scoped_lock lock(mutex_);
    auto images = TRY(entries());
    const Resolved resolved = TRY(resolve(images, reference));
    removed.digest = resolved.digest;
    std::erase_if(images, [&](const Descriptor& entry) {
      const bool goes =
          is_at(entry, resolved.digest) && (resolved.name.empty() || entry.name == resolved.name);
      if (goes && !entry.name.empty()) removed.names.push_back(entry.name);
      return goes;
    });
    removed.deleted = !has(images, resolved.digest);
    TRY(save(images));
    fault_point("image.unlisted");
    if (!removed.deleted) return removed;
    removed.freed = space_of(file_system(resolved.digest)) + remove_blobs(images);
    directory = fmt::format("{}/{}{}", path_, removing_prefix, SystemRandom().id().to_string());
    if (::rename(unpacked(resolved.digest).c_str(), directory->c_str()) != 0)
      return errno_failure(errno, fmt::format("cannot remove '{}'", unpacked(resolved.digest)));
  }
  fault_point("image.removed");
  TRY(machine::remove_tree(*directory));
  return removed;
}

std::uint64_t ImageStore::remove_blobs(const std::vector<Descriptor>& entries) const {
  std::set<std::string> needed;
  for (const Descriptor& entry : entries) {
    const auto found = record(entries, entry.digest);
    if (!found) {
      log_warning("no blobs are removed: {}", found.error().message());
      return 0;
    }
    for (const std::string& digest : blobs_of(*found)) needed.insert(digits_of(digest));
  }
  std::uint64_t freed = 0;
  for (const std::string& digits : names_in(path_ + "/blobs/sha256")) {
    if (needed.contains(digits)) continue;
    const std::string path = fmt::format("{}/blobs/sha256/{}", path_, digits);
    const std::uint64_t space = space_of(path);
    if (::unlink(path.c_str()) == 0) freed += space;
  }
  return freed;
}

}  // namespace berth::container
