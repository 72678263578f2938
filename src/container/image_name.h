// Names of images, as people type them and registries know them (the grammar of the distribution
// project's `reference` package): what is left out is filled in as Docker's users expect it.
//
//   nginx                      docker.io/library/nginx:latest
//   example.org/team/app:1.2   example.org/team/app:1.2
//   localhost:5000/app@sha256:…
//
// Pure; no I/O.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace berth::container {

struct ImageName {
  std::string repository;  // with its registry: "docker.io/library/nginx"
  std::string tag;         // "" where there is a digest
  std::string digest;      // "sha256:…", or ""
  /// The whole name; parsing it gives the same again.
  std::string text() const;
  friend bool operator==(const ImageName&, const ImageName&) = default;
};

/// invalid_argument, with what is wrong. Of a tag and a digest the digest counts, as everywhere.
Result<ImageName> parse_image_name(std::string_view text);

/// "sha256:" and 64 lower-case hexadecimal digits: what may become a file's name.
bool is_digest(std::string_view text);

constexpr std::size_t digest_prefix_length_min = 12;  // of the digits
/// The digits of a digest or of its beginning, with "sha256:" or without; "" if it is none.
std::string_view digest_digits(std::string_view text);

}  // namespace berth::container
