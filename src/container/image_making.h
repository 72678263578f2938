// How an image comes into the store: skopeo copies it, from a registry or an archive, umoci unpacks
// its layers, mkfs.erofs makes one read-only file system of them (decision 8).
//
// Blocking, and slow: call it on a thread that may wait. All of it happens in a scratch directory;
// after an error, a cancellation or the death of the process nothing is left that anybody sees.
#pragma once

#include <chrono>
#include <string>

#include "container/image_store.h"
#include "machine/volume_store.h"

namespace berth::container {

struct PullRequest {
  std::string image;       // a name, perhaps with "docker://" before it
  bool tls_verify = true;  // false: also registries without TLS, or with a certificate of nobody's
  std::chrono::seconds stall{60};  // the longest wait for anything to come
};

struct ImportRequest {
  std::string archive;  // absolute path, as image_archive.h says
  std::string image;    // which of the archive's; "" for the only one
  std::string name;     // that it gets; "" for its own in the archive
};

/// The whole name of what is to be pulled: invalid_argument.
Result<std::string> name_to_pull(const PullRequest& request);

/// Durable when they return. not_found, permission, disconnected, timed_out of registries;
/// unsupported where nothing of it runs on this host; corrupt; no_space; precondition where a
/// program is missing.
Result<ImageRecord> pull_image(ImageStore& store, const PullRequest& request,
                               const machine::VolumeJob& job);
Result<ImageRecord> import_image(ImageStore& store, const ImportRequest& request,
                                 const machine::VolumeJob& job);

}  // namespace berth::container
