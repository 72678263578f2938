// What is known of an image: out of the OCI documents that it is made of (image-spec 1.0: manifest,
// config, image index), and as it is kept (docs/formats/images.md).
//
// Pure: no I/O. Documents come from outside and may hold anything: what does not fit is `corrupt`,
// what is valid but of no use here `unsupported`, with its name.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "machine/control_protocol.h"

namespace berth::container {

using machine::Json;

/// A blob, as others name it.
struct Descriptor {
  std::string media_type;
  std::string digest;  // is_digest() holds
  std::uint64_t size = 0;
  std::string name;  // of an index's entry: its annotation org.opencontainers.image.ref.name, or ""
  friend bool operator==(const Descriptor&, const Descriptor&) = default;
};

struct ImageManifest {
  Descriptor config;
  std::vector<Descriptor> layers;  // the lowest first
};

/// How the image is meant to be run (config.md, "Properties": config).
struct RunConfig {
  std::vector<std::string> entrypoint;
  std::vector<std::string> command;
  std::vector<std::string> environment;    // "NAME=value"
  std::string working_directory;           // "" for /
  std::string user;                        // "user", "uid", "user:group", "uid:gid"; "" for root
  std::vector<std::string> exposed_ports;  // "80/tcp"
  std::vector<std::string> volumes;        // paths
  std::string stop_signal;                 // "SIGTERM", or ""
  std::map<std::string, std::string> labels;
  friend bool operator==(const RunConfig&, const RunConfig&) = default;
};

struct ImageLayer {
  std::string digest;      // of its blob
  std::string diff_id;     // digest of its tar
  std::uint64_t size = 0;  // of its blob, bytes
  friend bool operator==(const ImageLayer&, const ImageLayer&) = default;
};

struct ImageRecord {
  std::string digest;  // of its manifest: what tells it from all others
  std::uint64_t manifest_size = 0;
  std::string config_digest;
  std::uint64_t config_size = 0;
  std::string architecture;  // in Go's words, as OCI has it: "amd64"
  std::string variant;       // "v8", or ""
  std::string os;
  std::string created_at;   // by whoever made it, RFC 3339; "" where it does not say
  std::string imported_at;  // here
  std::string source;       // "docker://…", or the path that it was imported from
  std::uint64_t size = 0;   // of its file system image, bytes
  std::vector<ImageLayer> layers;
  RunConfig config;
  std::vector<std::string> names;  // in order; not part of the record that is kept
  friend bool operator==(const ImageRecord&, const ImageRecord&) = default;
};

Result<ImageManifest> decode_manifest(std::string_view text);
/// Fills in what the config says, and the layers' diff_ids: as many as the record has layers.
Result<void> decode_config(std::string_view text, ImageRecord& record);

/// An image index: that of a layout, or a manifest list.
Result<std::vector<Descriptor>> decode_index(std::string_view text);
std::string encode_index(const std::vector<Descriptor>& entries);
/// "linux/amd64, linux/arm64/v8": the platforms of a manifest list.
Result<std::string> platforms_of(std::string_view index);

Json encode(const ImageRecord& record);
Result<ImageRecord> decode_image_record(std::string_view text);

/// The digests of everything that it needs of the store: manifest, config, layers.
std::vector<std::string> blobs_of(const ImageRecord& record);

}  // namespace berth::container
