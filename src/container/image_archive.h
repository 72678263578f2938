// Images in files: what kind of archive a path is, and which images it has.
//
//   a directory with oci-layout and index.json     an OCI image layout (image-layout.md)
//   a tar of such a directory                      as skopeo and podman write it ("oci-archive")
//   a tar with manifest.json                       as `docker save` writes it ("docker-archive")
//
// A tar may be compressed. Blocking; what the documents say is decoded by pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace berth::container {

enum class ArchiveKind : std::uint8_t { oci_layout, oci_archive, docker_archive };
/// skopeo's transport for it: "oci".
std::string_view to_string(ArchiveKind kind);

struct ArchivedImage {
  std::string selector;  // how skopeo is told which one is meant; "" for the only one
  std::string label;     // what the archive calls it, as it is written there; "" for nothing
  std::string name;      // the whole name, where the label is one; else ""
};

struct ImageArchive {
  ArchiveKind kind = ArchiveKind::oci_layout;
  std::vector<ArchivedImage> images;
};

/// not_found; invalid_argument if it is no archive of images; corrupt.
Result<ImageArchive> examine_archive(const std::string& path);

/// The one that is meant: by its label or name, or the only one. invalid_argument with what there
/// is.
Result<ArchivedImage> choose_image(const ImageArchive& archive, std::string_view wanted);

/// Of a layout's index.json. A label that is a bare tag, as in "oci:DIR:latest", makes no name.
Result<std::vector<ArchivedImage>> images_of_index(std::string_view text);
/// Of a Docker archive's manifest.json; an image has the first of its RepoTags.
Result<std::vector<ArchivedImage>> images_of_docker_manifest(std::string_view text);

}  // namespace berth::container
