// The images of one state directory: which there are, how they are called, what they need.
//
// In STATE_DIR/images, an OCI image layout (docs/formats/images.md):
//
//   index.json                 the images and their names: what is not in here is not there
//   blobs/sha256/DIGITS        manifests, configs, layers; shared between images
//   unpacked/DIGITS/           of an image, by its manifest's digest: image.json, rootfs.erofs
//   .making-…, .removing-…     leftovers, unless somebody is at it
//
// Blocking; any thread. One process has the store at a time: the daemon. An image is published,
// named, renamed and removed by replacing index.json; whoever dies before has changed nothing that
// shows.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "container/image_record.h"

namespace berth::container {

struct RemovedImage {
  std::string digest;
  std::vector<std::string> names;  // that it had, and has no more
  bool deleted = false;            // false: it has other names, and stays
  std::uint64_t freed = 0;         // bytes
};

class ImageStore {
 public:
  explicit ImageStore(const std::string& state_dir);

  /// Makes the store where there is none, and removes what a dead process has left. Once, first.
  Result<void> open();

  /// By name; those without one at the end. One whose record cannot be read is left out, with a
  /// warning.
  Result<std::vector<ImageRecord>> list() const;
  /// By a name, or by its digest or at least 12 digits of it. not_found; invalid_argument where
  /// several images begin like that.
  Result<ImageRecord> find(const std::string& reference) const;
  /// The read-only file system of an image that is there (EROFS).
  std::string file_system(const std::string& digest) const;

  /// Where an image is being made: a directory that goes with it. Its `layout` is an OCI layout
  /// that has all blobs of the store already.
  class Scratch {
   public:
    explicit Scratch(std::string path) : path_(std::move(path)) {}
    Scratch(Scratch&& other) noexcept : path_(std::exchange(other.path_, {})) {}
    Scratch& operator=(Scratch&&) = delete;
    ~Scratch();
    const std::string& path() const { return path_; }
    std::string layout() const { return path_ + "/layout"; }
    std::string blob(const std::string& digest) const;
    std::string image() const { return path_ + "/image"; }  // becomes unpacked/DIGITS

   private:
    std::string path_;
  };
  Result<Scratch> begin() const;

  bool contains(const std::string& digest) const;
  /// Durable: the image is there, and has the name (none for ""), which another may have had
  /// before. Where it is there already it only gets the name. False, and nothing is done, where it
  /// is not there and `scratch` has not its file system either.
  Result<bool> publish(const Scratch& scratch, const ImageRecord& record, const std::string& name);

  /// By a name: takes the name away, and the image if that was the last one. By a digest: the
  /// image, with all of its names.
  Result<RemovedImage> remove(const std::string& reference);

 private:
  std::string blob(const std::string& digest) const;
  std::string unpacked(const std::string& digest) const;
  Result<std::vector<Descriptor>> entries() const;
  Result<void> save(const std::vector<Descriptor>& entries) const;
  Result<ImageRecord> record(const std::vector<Descriptor>& entries,
                             const std::string& digest) const;
  Result<void> place(const Scratch& scratch, const ImageRecord& record) const;
  /// What no image needs; the bytes that came back.
  std::uint64_t remove_blobs(const std::vector<Descriptor>& entries) const;

  std::string path_;
  mutable std::mutex mutex_;  // over index.json and what it promises
};

}  // namespace berth::container
