// For tests of the volume engine: a simulated machine with one volume, used by one process after
// the other. Its calls run the loop until the operation has ended.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "disk/check.h"
#include "disk/layout.h"
#include "disk/volume.h"
#include "testing/sim_host.h"
#include "testing/sim_loop.h"
#include "testing/sim_random.h"

namespace berth::disk {

class VolumeMachine {
 public:
  explicit VolumeMachine(std::uint64_t seed = 1) : host(seed), random(seed), seed_(seed) {
    start_process();
  }
  VolumeMachine(const VolumeMachine&) = delete;
  VolumeMachine& operator=(const VolumeMachine&) = delete;
  ~VolumeMachine() { end_process(); }

  VolumeEnvironment environment() {
    return {.loop = *loop,
            .directory = *directory,
            .live_store = *memory,
            .random = random,
            .open_backing = open_backing,
            .report_event = [this](const VolumeEvent& event) { events.push_back(event); }};
  }
  template <typename T>
  T run(Task<T> task) {
    return loop->run_until_complete(std::move(task));
  }

  Result<void> create(CreateOptions options) {
    return run(Volume::create(environment(), std::move(options)));
  }
  Result<void> open(OpenOptions options = {}) {
    volume = TRY(run(Volume::open(environment(), options)));
    return {};
  }
  Result<void> close() {
    auto closed = run(volume->close());
    volume.reset();
    return closed;
  }
  Result<void> reopen() {
    TRY(close());
    return open();
  }
  /// The process dies where it stands, and the next one begins.
  void die() {
    end_process();
    start_process();
  }
  /// Goes on with another directory: a copy of the volume, or back with the volume.
  void go_to(const std::string& directory_name) {
    end_process();
    path_ = directory_name;
    start_process();
  }
  void lose_power() {
    end_process();
    host.power_loss();
    start_process();
  }

  Result<void> write(std::uint64_t offset, std::size_t length, char byte) {
    const AlignedBuffer buffer(round_up(length, AlignedBuffer::alignment));
    std::memset(buffer.data(), byte, length);
    return run(volume->write(offset, buffer.first(length)));
  }
  Result<std::string> read(std::uint64_t offset, std::size_t length) {
    std::string bytes(length, '?');
    TRY(run(volume->read(offset, {reinterpret_cast<std::byte*>(bytes.data()), bytes.size()})));
    return bytes;
  }
  Result<std::string> read_checkpoint(const std::string& name, std::uint64_t offset,
                                      std::size_t length) {
    const auto reader = TRY(volume->read_checkpoint(name));
    std::string bytes(length, '?');
    TRY(run(reader->read(offset, {reinterpret_cast<std::byte*>(bytes.data()), bytes.size()})));
    return bytes;
  }
  Result<void> flush() { return run(volume->flush()); }
  Result<CutOutcome> checkpoint(const std::string& name,
                                Durability durability = Durability::durable) {
    return run(
        volume->cut({.checkpoint = name, .refpoint = {}, .durability = durability, .group = {}}));
  }
  Result<CutOutcome> refpoint(const std::string& name) {
    return run(volume->cut(
        {.checkpoint = {}, .refpoint = name, .durability = Durability::durable, .group = {}}));
  }
  Result<ChangesPage> changes(const std::string& since, const std::string& until = {}) {
    ChangesRequest request;
    request.since = since;
    request.until = until;
    return run(volume->changes(request));
  }
  /// The volume is closed, or its process has died.
  Result<CheckReport> check(bool repair = false) {
    return run(check_volume(*loop, *directory, {.repair = repair, .live_store = memory.get()}));
  }

  /// Flips a bit in each of the bytes, on disk and in the cache.
  void damage(const std::string& file, std::uint64_t offset, std::size_t length = 1) {
    MUST(host.corrupt(path_ + "/" + file, offset, length));
  }
  void damage_page(std::uint64_t page, unsigned slot) {
    write_file("map", page_slot_offset(page, slot) + 512, as_bytes("not what it should be"));
  }
  std::vector<std::byte> read_file(const std::string& file, std::uint64_t offset,
                                   std::size_t length) {
    const auto opened = open_file(file);
    std::vector<std::byte> bytes(length);
    bytes.resize(MUST(run(read_all(*opened, offset, bytes))));
    return bytes;
  }
  void write_file(const std::string& file, std::uint64_t offset, Bytes bytes) {
    const auto opened = open_file(file);
    MUST(run(write_all(*opened, offset, bytes)));
  }
  std::unique_ptr<File> open_file(const std::string& file) {
    const auto slash = file.find('/');
    if (slash == std::string::npos) return MUST(directory->open(file, {}));
    const auto below = MUST(directory->open_directory(file.substr(0, slash), false));
    return MUST(below->open(file.substr(slash + 1), {}));
  }

  SimHost host;
  SimRandom random;
  std::unique_ptr<SimLoop> loop;
  std::unique_ptr<Directory> directory;
  std::unique_ptr<SharedMemoryStore> memory;
  std::unique_ptr<Volume> volume;
  BackingOpener open_backing;
  std::vector<VolumeEvent> events;

 private:
  static Task<Result<std::size_t>> read_all(File& file, std::uint64_t offset, MutableBytes into) {
    co_return co_await file.read(offset, into);
  }
  static Task<Result<void>> write_all(File& file, std::uint64_t offset, Bytes bytes) {
    CO_TRY(co_await file.write(offset, bytes));
    co_return co_await file.sync_all();
  }
  void start_process() {
    loop = std::make_unique<SimLoop>(host, mix64(++seed_));
    directory = MUST(host.open_directory(*loop, path_));
    memory = host.shared_memory();
  }
  void end_process() {
    if (volume) volume->abandon();
    volume.reset();
    memory.reset();
    directory.reset();
    if (loop) loop->kill();
    loop.reset();
  }

  std::uint64_t seed_;
  std::string path_ = "vol";
};

/// The kind of the error, or nothing: for EXPECT_EQ.
template <typename T>
std::optional<ErrorKind> kind_of(const Result<T>& result) {
  return result ? std::nullopt : std::optional(result.error().kind());
}

/// An image that the backing of a volume is: every byte is `byte`.
class ConstantFile final : public File {
 public:
  ConstantFile(Loop& loop, std::uint64_t size, char byte) : loop_(loop), size_(size), byte_(byte) {}
  void submit(FileRequest& request) override {
    const std::uint64_t length =
        request.offset >= size_ ? 0 : std::min(request.length, size_ - request.offset);
    if (request.kind == FileRequest::Kind::read) std::memset(request.data, byte_, length);
    request.result =
        request.kind == FileRequest::Kind::read ? static_cast<std::int64_t>(length) : -EROFS;
    loop_.post(request.waiter);
  }
  Result<std::uint64_t> size() override { return size_; }
  Result<void> truncate(std::uint64_t) override {
    return failure(ErrorKind::read_only, "a backing");
  }
  Result<FileIdentity> identity() override { return FileIdentity{.size = size_}; }
  Result<std::uint64_t> next_data(std::uint64_t offset) override { return offset; }
  Result<std::uint64_t> next_hole(std::uint64_t) override { return size_; }
  const std::string& name() const override { return name_; }

 private:
  Loop& loop_;
  std::uint64_t size_;
  char byte_;
  std::string name_ = "constant";
};

inline Task<Result<std::unique_ptr<File>>> open_constant(VolumeMachine* machine, std::uint64_t size,
                                                         char byte) {
  co_return std::make_unique<ConstantFile>(*machine->loop, size, byte);
}

}  // namespace berth::disk
