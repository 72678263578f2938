// SimMachine: a simulated host with one process and its directory "vol", for tests that do one
// thing after the other. Its calls run the loop until the operation has ended.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "testing/sim_file.h"
#include "testing/sim_loop.h"

namespace berth {

struct SimMachine {
  explicit SimMachine(std::uint64_t seed, SimHostOptions options = {})
      : host(seed, options), loop(host, seed), directory(MUST(host.open_directory(loop, "vol"))) {}

  std::unique_ptr<File> open(const std::string& name, OpenOptions options = {.create = true}) {
    return MUST(directory->open(name, options));
  }
  Result<void> write(File& file, std::uint64_t offset, Bytes bytes) {
    return loop.run_until_complete(write_all(file, offset, bytes));
  }
  Result<void> write(File& file, std::uint64_t offset, std::size_t length, char byte) {
    const std::string bytes(length, byte);
    return write(file, offset, as_bytes(bytes));
  }
  Result<void> sync(File& file) { return loop.run_until_complete(sync_data(file)); }
  Result<void> punch(File& file, std::uint64_t offset, std::uint64_t length) {
    return loop.run_until_complete(punch_all(file, offset, length));
  }
  Result<void> zero(File& file, std::uint64_t offset, std::uint64_t length) {
    return loop.run_until_complete(zero_all(file, offset, length));
  }
  Result<std::string> read(File& file, std::uint64_t offset, std::size_t length) {
    std::string bytes(length, '?');
    const MutableBytes into{reinterpret_cast<std::byte*>(bytes.data()), bytes.size()};
    bytes.resize(TRY(loop.run_until_complete(read_all(file, offset, into))));
    return bytes;
  }
  /// The process, whose files are gone, dies; with `power_loss` the machine does. Then the next
  /// begins.
  void restart(bool power_loss) {
    loop.kill();
    if (power_loss) host.power_loss();
    directory = MUST(host.open_directory(loop, "vol"));
  }

  static Task<Result<void>> write_all(File& file, std::uint64_t offset, Bytes bytes) {
    co_return co_await file.write(offset, bytes);
  }
  static Task<Result<void>> sync_data(File& file) { co_return co_await file.sync(); }
  static Task<Result<void>> sync_all(File& file) { co_return co_await file.sync_all(); }
  static Task<Result<void>> punch_all(File& file, std::uint64_t offset, std::uint64_t length) {
    co_return co_await file.punch(offset, length);
  }
  static Task<Result<void>> zero_all(File& file, std::uint64_t offset, std::uint64_t length) {
    co_return co_await file.zero(offset, length);
  }
  static Task<Result<std::size_t>> read_all(File& file, std::uint64_t offset, MutableBytes into) {
    co_return co_await file.read(offset, into);
  }

  SimHost host;
  SimLoop loop;
  std::unique_ptr<Directory> directory;
};

/// For a gate.
inline Task<> ignore_result(Task<Result<void>> task) { (void)co_await task; }

/// The first byte of each 512-byte sector; '!' for a sector whose bytes differ, which must never
/// be.
inline std::string sectors_of(const std::string& bytes) {
  std::string firsts;
  for (std::size_t at = 0; at < bytes.size(); at += sim_sector_size) {
    const std::string sector = bytes.substr(at, sim_sector_size);
    firsts += sector.find_first_not_of(sector[0]) == std::string::npos ? sector[0] : '!';
  }
  return firsts;
}

}  // namespace berth
