#include "container/image_archive.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>

#include <archive.h>
#include <archive_entry.h>
#include <sys/stat.h>

#include <fmt/format.h>

#include "container/image_name.h"
#include "container/image_record.h"
#include "machine/small_file.h"
#include "machine/volume_directory.h"

namespace berth::container {
namespace {

constexpr std::size_t entries_max = 1'000'000;  // of a tar that is looked at

struct Closer {
  void operator()(::archive* archive) const { ::archive_read_free(archive); }
};
using Reader = std::unique_ptr<::archive, Closer>;

std::unexpected<Error> no_archive(const std::string& path) {
  return failure(ErrorKind::invalid_argument,
                 fmt::format("'{}' has no image: give an OCI layout's directory, or a tar as "
                             "`skopeo copy`, `podman save` or `docker save` write it",
                             path));
}

std::string name_of(const std::string& label) {
  const auto name = parse_image_name(label);
  return name ? name->text() : std::string();
}

/// The documents of a tar that say what it is.
struct Documents {
  bool layout = false;
  std::optional<std::string> index;            // of an OCI layout
  std::optional<std::string> docker_manifest;  // of a Docker archive
};

Result<std::string> read_entry(::archive* reader, const std::string& path) {
  std::string text(machine::small_file_size_max + 1, '\0');
  std::size_t length = 0;
  while (length < text.size()) {
    const la_ssize_t got = ::archive_read_data(reader, text.data() + length, text.size() - length);
    if (got < 0)
      return failure(ErrorKind::corrupt,
                     fmt::format("'{}' cannot be read: {}", path, ::archive_error_string(reader)));
    if (got == 0) break;
    length += static_cast<std::size_t>(got);
  }
  if (length > machine::small_file_size_max)
    return failure(ErrorKind::limit, fmt::format("the list of images in '{}' is too long", path));
  text.resize(length);
  return text;
}

Result<Documents> documents_of_tar(const std::string& path) {
  const Reader reader(::archive_read_new());
  ::archive_read_support_filter_all(reader.get());
  ::archive_read_support_format_tar(reader.get());
  constexpr std::size_t block_size = 1 << 16;
  if (::archive_read_open_filename(reader.get(), path.c_str(), block_size) != ARCHIVE_OK)
    return no_archive(path);
  Documents documents;
  for (std::size_t i = 0; i < entries_max; ++i) {
    ::archive_entry* entry = nullptr;
    const int got = ::archive_read_next_header(reader.get(), &entry);
    if (got == ARCHIVE_EOF) return documents;
    if (got != ARCHIVE_OK && got != ARCHIVE_WARN) {
      if (i == 0) return no_archive(path);
      return failure(ErrorKind::corrupt, fmt::format("'{}' cannot be read: {}", path,
                                                     ::archive_error_string(reader.get())));
    }
    const char* text = ::archive_entry_pathname(entry);
    std::string_view name = text == nullptr ? "" : text;
    if (name.starts_with("./")) name.remove_prefix(2);
    if (name == "oci-layout") documents.layout = true;
    if (name == "index.json") documents.index = TRY(read_entry(reader.get(), path));
    if (name == "manifest.json") documents.docker_manifest = TRY(read_entry(reader.get(), path));
  }
  return failure(ErrorKind::limit, fmt::format("'{}' has too many files", path));
}

Result<ImageArchive> examine_tar(const std::string& path) {
  const Documents documents = TRY(documents_of_tar(path));
  // Docker writes both, and whole names only into the older one.
  if (documents.docker_manifest) {
    return ImageArchive{.kind = ArchiveKind::docker_archive,
                        .images = TRY(images_of_docker_manifest(*documents.docker_manifest))};
  }
  if (!documents.layout || !documents.index) return no_archive(path);
  return ImageArchive{.kind = ArchiveKind::oci_archive,
                      .images = TRY(images_of_index(*documents.index))};
}

}  // namespace

std::string_view to_string(ArchiveKind kind) {
  switch (kind) {
    case ArchiveKind::oci_layout: return "oci";
    case ArchiveKind::oci_archive: return "oci-archive";
    case ArchiveKind::docker_archive: return "docker-archive";
  }
  return "oci";
}

Result<ImageArchive> examine_archive(const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0)
    return errno_failure(errno, fmt::format("cannot look at '{}'", path));
  if (S_ISREG(status.st_mode)) {
    auto archive = examine_tar(path);
    if (archive && archive->images.empty()) return no_archive(path);
    return archive;
  }
  if (!S_ISDIR(status.st_mode) || !machine::path_exists(path + "/oci-layout"))
    return no_archive(path);
  const std::string index = TRY(machine::read_small_file(path + "/index.json"));
  auto images = images_of_index(index);
  if (!images)
    return failure(std::move(images).error().with_context(fmt::format("'{}/index.json'", path)));
  if (images->empty()) return no_archive(path);
  return ImageArchive{.kind = ArchiveKind::oci_layout, .images = std::move(*images)};
}

Result<ArchivedImage> choose_image(const ImageArchive& archive, std::string_view wanted) {
  std::string there;
  for (const ArchivedImage& image : archive.images) {
    const bool is_it = !wanted.empty() && (image.label == wanted || image.name == wanted ||
                                           image.name == name_of(std::string(wanted)));
    if (is_it || (wanted.empty() && archive.images.size() == 1)) return image;
    there += fmt::format("{}{}", there.empty() ? "" : ", ",
                         image.label.empty() ? "one without a name" : image.label);
  }
  return failure(ErrorKind::invalid_argument,
                 wanted.empty() ? fmt::format("it has {} images: choose one with --image: {}",
                                              archive.images.size(), there)
                                : fmt::format("it has no image '{}', but: {}", wanted, there));
}

Result<std::vector<ArchivedImage>> images_of_index(std::string_view text) {
  const auto entries = TRY(decode_index(text));
  std::vector<ArchivedImage> images;
  for (const Descriptor& entry : entries) {
    ArchivedImage image{.selector = entry.name, .label = entry.name, .name = {}};
    if (entry.name.find_first_of("/:") != std::string::npos) image.name = name_of(entry.name);
    images.push_back(std::move(image));
  }
  if (images.size() == 1) images.front().selector.clear();
  return images;
}

Result<std::vector<ArchivedImage>> images_of_docker_manifest(std::string_view text) {
  auto json = machine::parse_json(text);
  if (!json || !json->is_array())
    return failure(ErrorKind::corrupt, "its manifest.json is no JSON list");
  std::vector<ArchivedImage> images;
  for (const Json& entry : *json) {
    if (!entry.is_object())
      return failure(ErrorKind::corrupt, "its manifest.json is no list of images");
    ArchivedImage image{.selector = fmt::format("@{}", images.size()), .label = {}, .name = {}};
    const auto tags = entry.find("RepoTags");
    if (tags != entry.end() && tags->is_array() && !tags->empty() && tags->front().is_string()) {
      image.label = tags->front().get<std::string>();
      image.name = name_of(image.label);
    }
    images.push_back(std::move(image));
  }
  return images;
}

}  // namespace berth::container
