// The volume engine in process, on a data file that does nothing: what tracking costs per request,
// and what questions about a disk of 4 TiB cost. Prints JSON; bench/disk.py reads it.
//
//   volume_bench [--quick] [--directory DIR] [tracking] [scale]
//
// The map and the holds are real files in DIR (the temporary directory when left out), the live map
// is in /dev/shm; both are removed at the end.
#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "async/gate.h"
#include "null_volume.h"

namespace berth::bench {
namespace {

// --- Many requests side by side.

/// Random requests, until none is left.
struct RandomLoad {
  std::uint64_t requests_left = 0;
  RandomOffsets offsets;
};

template <typename Operation>
Task<> work(RandomLoad& load, Operation& operation) {
  while (load.requests_left > 0) {
    --load.requests_left;
    const auto done = co_await operation(load.offsets.next());
    CHECK(done.has_value());
  }
}

template <typename Operation>
Task<> run_load(Loop& loop, RandomLoad& load, Operation& operation) {
  Gate gate(loop);
  for (unsigned i = 0; i < depth; ++i) gate.spawn(work(load, operation));
  co_await gate.drained();
}

/// What one request costs, on average.
template <typename Operation>
double cost_of(Bench& bench, std::uint64_t size, std::uint64_t requests, Operation operation) {
  RandomLoad load{.requests_left = requests, .offsets = RandomOffsets(size)};
  const std::uint64_t before = bench.meter.read();
  bench.run(run_load(*bench.loop, load, operation));
  return static_cast<double>(bench.meter.read() - before) / static_cast<double>(requests);
}

// --- The cost of tracking.

struct Contender {
  std::string name;
  std::function<double(std::uint64_t requests)> write;
  std::function<double(std::uint64_t requests)> read;
};

Contender tracked(Bench& bench, NullVolume& volume, std::string name, std::uint64_t size,
                  const AlignedBuffer& buffer) {
  return {.name = std::move(name),
          .write =
              [&bench, &volume, size, bytes = Bytes(buffer.bytes())](std::uint64_t requests) {
                return cost_of(bench, size, requests, [&volume, bytes](std::uint64_t offset) {
                  return volume->write(offset, bytes);
                });
              },
          .read =
              [&bench, &volume, size, bytes = buffer.bytes()](std::uint64_t requests) {
                return cost_of(bench, size, requests, [&volume, bytes](std::uint64_t offset) {
                  return volume->read(offset, bytes);
                });
              }};
}

Contender untracked(Bench& bench, File& file, std::uint64_t size, const AlignedBuffer& buffer) {
  return {.name = "off",
          .write =
              [&bench, &file, size, bytes = Bytes(buffer.bytes())](std::uint64_t requests) {
                return cost_of(bench, size, requests, [&file, bytes](std::uint64_t offset) {
                  return file.write(offset, bytes);
                });
              },
          .read =
              [&bench, &file, size, bytes = buffer.bytes()](std::uint64_t requests) {
                return cost_of(bench, size, requests, [&file, bytes](std::uint64_t offset) {
                  return file.read(offset, bytes);
                });
              }};
}

/// Slices of all contenders in turn, so that whatever disturbs the machine disturbs all of them
/// alike; ratios are taken within a turn.
Json measure_tracking(Bench& bench) {
  constexpr std::uint64_t size = 1 * GiB;
  constexpr std::array<unsigned, 3> refpoint_counts = {0, 1, 1000};
  const unsigned turns = bench.quick ? 5 : 25;
  const std::uint64_t requests = bench.quick ? 50'000 : 1'000'000;

  const AlignedBuffer buffer = AlignedBuffer::zeroed(request_size);
  std::uint64_t file_size = size;
  NullFile file(*bench.loop, file_size, data_byte);
  std::vector<std::unique_ptr<NullVolume>> volumes;
  std::vector<Contender> contenders = {untracked(bench, file, size, buffer)};
  for (const unsigned count : refpoint_counts) {
    auto& volume = *volumes.emplace_back(
        std::make_unique<NullVolume>(bench, fmt::format("refs{}", count), size));
    volume.write_whole();
    for (unsigned i = 0; i < count; ++i) volume.make_refpoint(fmt::format("r{}", i));
    if (count > 0) volume.write_whole();
    contenders.push_back(tracked(bench, volume, fmt::format("{}", count), size, buffer));
  }

  std::map<std::string, std::vector<double>> costs;
  std::map<std::string, std::vector<double>> ratios;
  for (unsigned turn = 0; turn < turns + 1; ++turn) {
    std::map<std::string, double> write;
    std::map<std::string, double> read;
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      const Contender& contender = contenders[(turn + i) % contenders.size()];
      write[contender.name] = contender.write(requests);
      read[contender.name] = contender.read(requests);
    }
    if (turn == 0) continue;  // warms up
    for (const auto& [name, cost] : write) costs["write_" + name].push_back(cost);
    for (const auto& [name, cost] : read) costs["read_" + name].push_back(cost);
    ratios["write_1000_to_1"].push_back(write["1000"] / write["1"]);
    ratios["read_1000_to_1"].push_back(read["1000"] / read["1"]);
    ratios["write_1_to_off"].push_back(write["1"] / write["off"]);
    ratios["read_1_to_off"].push_back(read["1"] / read["off"]);
  }
  Json result = {{"unit", bench.meter.unit()}, {"turns", turns}, {"requests_per_turn", requests}};
  for (const auto& [name, values] : costs) result["per_request"][name] = figure(values);
  for (const auto& [name, values] : ratios) result["ratios"][name] = figure(values);
  return result;
}

// --- Questions about large disks.

/// Writes to every block of the list, many at a time.
struct BlockLoad {
  const std::vector<disk::BlockIndex>& blocks;
  std::uint64_t length = 0;  // bytes of each write
  std::size_t next = 0;
};

Task<> write_blocks_worker(BlockLoad& load, Volume& volume, Bytes content) {
  while (load.next < load.blocks.size()) {
    const disk::BlockIndex block = load.blocks[load.next++];
    MUST(co_await volume.write(block * block_size, content.first(load.length)));
  }
}

Task<> write_blocks(Loop& loop, BlockLoad& load, Volume& volume, Bytes content) {
  constexpr unsigned writes_at_once = 1024;  // so that a commit of intents covers many
  Gate gate(loop);
  for (unsigned i = 0; i < writes_at_once; ++i)
    gate.spawn(write_blocks_worker(load, volume, content));
  co_await gate.drained();
}

/// One block of a hundred, anywhere, in the order of the disk.
std::vector<disk::BlockIndex> scattered_blocks(std::uint64_t size) {
  std::mt19937_64 random(1);
  const std::uint64_t count = size / block_size;
  std::vector<disk::BlockIndex> blocks(count / 100);
  for (auto& block : blocks) block = random() % count;
  std::ranges::sort(blocks);
  const auto again = std::ranges::unique(blocks);
  blocks.erase(again.begin(), again.end());
  return blocks;
}

/// As many, in runs of 64 MiB; each entry stands for 1 MiB.
std::vector<disk::BlockIndex> clustered_blocks(std::uint64_t size) {
  constexpr std::uint64_t run = 64 * MiB;
  constexpr std::uint64_t step = 1 * MiB / block_size;
  std::vector<disk::BlockIndex> blocks;
  for (std::uint64_t offset = 0; offset + run <= size; offset += 100 * run) {
    for (std::uint64_t i = 0; i < run / MiB; ++i) blocks.push_back(offset / block_size + i * step);
  }
  return blocks;
}

double elapsed_ms(Instant since, Instant until) {
  return std::chrono::duration<double, std::milli>(until - since).count();
}

/// changes(since, now), several times: as one answer, and page by page as the API asks for it.
Json measure_changes(Bench& bench, Volume& volume, const std::string& since) {
  std::vector<double> whole_ms;
  std::vector<double> whole_cpu_ms;
  std::vector<double> paged_ms;
  std::uint64_t extents = 0;
  std::uint64_t bytes = 0;
  for (int round = 0; round < 5; ++round) {
    Instant start = bench.loop->now();
    const std::uint64_t cpu_start = thread_cpu_ns();
    const auto answer = MUST(bench.run(
        volume.changes({.since = since, .nonce = {}, .until = {}, .extents_max = SIZE_MAX})));
    whole_cpu_ms.push_back(static_cast<double>(thread_cpu_ns() - cpu_start) / 1e6);
    whole_ms.push_back(elapsed_ms(start, bench.loop->now()));
    extents = answer.extents.size();
    bytes = 0;
    for (const disk::Extent& extent : answer.extents) bytes += extent.length;

    start = bench.loop->now();
    disk::ChangesPage page;
    page.complete = false;
    while (!page.complete) {
      page = MUST(bench.run(
          volume.changes({.since = since, .nonce = {}, .until = {}, .offset = page.next_offset})));
    }
    paged_ms.push_back(elapsed_ms(start, bench.loop->now()));
  }
  return {{"extents", extents},
          {"changed_bytes", bytes},
          {"ms", figure(whole_ms)},
          {"cpu_ms", figure(whole_cpu_ms)},
          {"paged_ms", figure(paged_ms)}};
}

/// A checkpoint with 16 MiB of held blocks, converted to a reference point, several times.
Json measure_conversion(Bench& bench, NullVolume& volume, std::uint64_t size, Bytes content) {
  constexpr std::uint64_t held_blocks = 256;
  std::vector<double> convert_ms;
  std::vector<double> cut_ms;
  std::uint64_t held_bytes = 0;
  for (int round = 0; round < 5; ++round) {
    const std::string name = fmt::format("checkpoint{}", round);
    Instant start = bench.loop->now();
    volume.make_checkpoint(name);
    cut_ms.push_back(elapsed_ms(start, bench.loop->now()));
    std::vector<disk::BlockIndex> blocks(held_blocks);
    for (std::uint64_t i = 0; i < held_blocks; ++i)
      blocks[i] = i * (size / block_size / held_blocks);
    BlockLoad load{.blocks = blocks, .length = request_size};
    bench.run(write_blocks(*bench.loop, load, *volume, content));
    for (const auto& checkpoint : volume->checkpoints()) held_bytes = checkpoint.held_bytes;
    start = bench.loop->now();
    (void)MUST(bench.run(volume->convert_checkpoint(name, name)));
    convert_ms.push_back(elapsed_ms(start, bench.loop->now()));
  }
  return {{"held_bytes", held_bytes}, {"ms", figure(convert_ms)}, {"cut_ms", figure(cut_ms)}};
}

/// What the process has in memory, in bytes: its own, and shared (the live map).
Json process_memory() {
  Json result;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    for (const auto& [field, name] : {std::pair{"RssAnon:", "private"}, {"RssShmem:", "shared"}}) {
      if (line.starts_with(field))
        result[name] = std::stoull(line.substr(std::string(field).size())) * KiB;
    }
  }
  return result;
}

Json measure_volume(Bench& bench, const std::string& name, std::uint64_t size) {
  const AlignedBuffer buffer = AlignedBuffer::zeroed(1 * MiB);
  Json result = {{"size", size}, {"memory_before", process_memory()}};
  const Instant start = bench.loop->now();
  NullVolume volume(bench, name, size);
  result["create_and_open_ms"] = elapsed_ms(start, bench.loop->now());
  result["memory_opened"] = process_memory();
  result["conversion"] = measure_conversion(bench, volume, size, buffer.bytes());

  volume.make_refpoint("before-scattered");
  const auto scattered = scattered_blocks(size);
  const Instant write_start = bench.loop->now();
  BlockLoad load{.blocks = scattered, .length = request_size};
  bench.run(write_blocks(*bench.loop, load, *volume, buffer.bytes()));
  const double write_ms = elapsed_ms(write_start, bench.loop->now());
  result["changes_scattered"] = measure_changes(bench, *volume, "before-scattered");
  result["changes_scattered"]["write_seconds"] = write_ms / 1000;

  volume.make_refpoint("before-clustered");
  const auto clustered = clustered_blocks(size);
  BlockLoad clustered_load{.blocks = clustered, .length = 1 * MiB};
  bench.run(write_blocks(*bench.loop, clustered_load, *volume, buffer.bytes()));
  result["changes_clustered"] = measure_changes(bench, *volume, "before-clustered");

  volume.make_refpoint("before-nothing");
  result["changes_none"] = measure_changes(bench, *volume, "before-nothing");
  result["memory"] = process_memory();
  return result;
}

Json measure_scale(Bench& bench) {
  return {{"1GiB", measure_volume(bench, "small", 1 * GiB)},
          {bench.quick ? "256GiB" : "4TiB",
           measure_volume(bench, "large", bench.quick ? 256 * GiB : 4 * TiB)}};
}

int run(std::vector<std::string> arguments) {
  std::string directory = std::filesystem::temp_directory_path();
  bool quick = false;
  std::vector<std::string> sections;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--quick") {
      quick = true;
    } else if (arguments[i] == "--directory" && i + 1 < arguments.size()) {
      directory = arguments[++i];
    } else if (arguments[i] == "tracking" || arguments[i] == "scale") {
      sections.push_back(arguments[i]);
    } else {
      fmt::print(stderr, "usage: volume_bench [--quick] [--directory DIR] [tracking] [scale]\n");
      return 2;
    }
  }
  const auto wanted = [&](const char* section) {
    return sections.empty() || std::ranges::find(sections, section) != sections.end();
  };
  Bench bench(std::filesystem::absolute(directory), quick);
  Json result;
  if (wanted("scale")) result["scale"] = measure_scale(bench);
  if (wanted("tracking")) result["tracking"] = measure_tracking(bench);
  fmt::print("{}\n", result.dump(2));
  return 0;
}

}  // namespace
}  // namespace berth::bench

int main(int argc, char** argv) {
  return berth::bench::run(std::vector<std::string>(argv + 1, argv + argc));
}
