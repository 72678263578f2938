// What the benchmarks of the engine stand on: a loop, directories that go with it, a volume on null
// data (null_data.h), and figures as disk.py reads them. One thread; the Bench outlives its
// volumes.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "async/shared_memory.h"
#include "async/uring_file.h"
#include "async/uring_loop.h"
#include "base/aligned_buffer.h"
#include "base/units.h"
#include "cost_meter.h"
#include "disk/volume.h"
#include "null_data.h"

namespace berth::bench {

using Json = nlohmann::ordered_json;
using disk::Volume;

constexpr std::uint64_t request_size = 4 * KiB;
constexpr std::uint64_t block_size = disk::block_size_default;
constexpr unsigned depth = 32;
constexpr auto data_byte = std::byte{0x5a};  // not zero: a hold has something to keep

/// Where random requests go: the same offsets in every run.
class RandomOffsets {
 public:
  /// `size`: bytes of the disk.
  explicit RandomOffsets(std::uint64_t size) : size_(size) {}

  std::uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ % (size_ / request_size) * request_size;
  }

 private:
  std::uint64_t size_;
  std::uint64_t state_ = 0x9e3779b97f4a7c15;
};

/// A directory that goes with this object.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::string& parent) : path_(parent + "/berth-bench-XXXXXX") {
    if (::mkdtemp(path_.data()) == nullptr) {
      std::perror(path_.c_str());
      std::exit(1);
    }
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// What every volume of a run stands on.
struct Bench {
  explicit Bench(const std::string& parent, bool quick)
      : quick(quick),
        files(parent),
        memory("/dev/shm"),
        loop(MUST(UringLoop::create())),
        live_store(MUST(FileSharedMemoryStore::create_at(memory.path()))) {}

  template <typename T>
  T run(Task<T> task) {
    return loop->run_until_complete(std::move(task));
  }

  bool quick;
  TemporaryDirectory files;
  TemporaryDirectory memory;
  std::unique_ptr<UringLoop> loop;
  std::unique_ptr<FileSharedMemoryStore> live_store;
  SystemRandom random;
  CostMeter meter;
};

/// An open volume on null data.
class NullVolume {
 public:
  NullVolume(Bench& bench, const std::string& name, std::uint64_t size)
      : bench_(bench),
        directory_(*bench.loop,
                   MUST(open_directory(*bench.loop, bench.files.path() + "/" + name, true)),
                   data_byte) {
    MUST(bench.run(Volume::create(environment(), {.size = size, .backing = {}})));
    volume_ = MUST(bench.run(Volume::open(environment(), {})));
  }
  NullVolume(const NullVolume&) = delete;
  NullVolume& operator=(const NullVolume&) = delete;
  ~NullVolume() { MUST(bench_.run(volume_->close())); }

  Volume& operator*() { return *volume_; }
  Volume* operator->() { return volume_.get(); }

  void make_refpoint(const std::string& name) {
    cut({.checkpoint = {}, .refpoint = name, .group = {}});
  }
  void make_checkpoint(const std::string& name) {
    cut({.checkpoint = name, .refpoint = {}, .group = {}});
  }
  /// All blocks become those of the current epoch.
  void write_whole() {
    const AlignedBuffer buffer = AlignedBuffer::zeroed(1 * MiB);
    for (std::uint64_t offset = 0; offset < volume_->info().size; offset += buffer.size()) {
      MUST(bench_.run(volume_->write(offset, buffer.bytes())));
    }
  }

 private:
  void cut(disk::CutRequest request) { (void)MUST(bench_.run(volume_->cut(std::move(request)))); }
  disk::VolumeEnvironment environment() {
    return {.loop = *bench_.loop,
            .directory = directory_,
            .live_store = *bench_.live_store,
            .random = bench_.random,
            .open_backing = {},
            .report_event = {}};
  }

  Bench& bench_;
  NullDataDirectory directory_;
  std::unique_ptr<Volume> volume_;
};

inline double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

inline Json figure(const std::vector<double>& values) {
  const auto [least, most] = std::ranges::minmax_element(values);
  return {{"median", median(values)}, {"min", *least}, {"max", *most}};
}

}  // namespace berth::bench
