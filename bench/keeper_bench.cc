// What tracking costs a keeper: CPU per request of a thread that serves NBD on a socket, as a
// keeper does, on a data file that does nothing. "off" is the null file as it is
// (nbd/file_export.h); the others are volumes with so many reference points. Prints JSON;
// bench/disk.py reads it.
//
//   keeper_bench [--quick] [--directory DIR]
#include <array>
#include <map>
#include <optional>
#include <thread>

#include <libnbd.h>
#include <sys/socket.h>

#include <fmt/format.h>

#include "async/socket.h"
#include "machine/volume_export.h"
#include "nbd/file_export.h"
#include "nbd/server.h"
#include "null_volume.h"

namespace berth::bench {
namespace {

constexpr std::uint64_t disk_size = 1 * GiB;

/// One export, under any name.
class OneExport final : public nbd::ExportDirectory {
 public:
  explicit OneExport(std::shared_ptr<nbd::Export> served) : served_(std::move(served)) {}
  std::vector<nbd::ListedExport> list() override { return {{served_->info().name, ""}}; }
  Task<Result<std::shared_ptr<nbd::Export>>> find(std::string /*name*/) override {
    co_return served_;
  }

 private:
  std::shared_ptr<nbd::Export> served_;
};

void check_libnbd(bool good) {
  if (good) return;
  fmt::print(stderr, "keeper_bench: {}\n", ::nbd_get_error());
  std::exit(1);
}

enum class Direction : std::uint8_t { write, read };

/// A client on a thread of its own, connected for good.
class Client {
 public:
  explicit Client(Fd socket) : nbd_(::nbd_create()) {
    check_libnbd(nbd_ != nullptr);
    check_libnbd(::nbd_connect_socket(nbd_, socket.release()) == 0);
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  ~Client() { ::nbd_close(nbd_); }

  /// Random requests, always `depth` of them under way.
  void run(Direction direction, std::uint64_t requests) {
    std::uint64_t started = 0;
    std::uint64_t ended = 0;
    const nbd_completion_callback when_done{
        .callback = count_up, .user_data = &ended, .free = nullptr};
    while (ended < requests) {
      while (started < requests && started - ended < depth) {
        std::byte* slot = buffer_.data() + started % depth * request_size;
        const std::uint64_t offset = offsets_.next();
        const std::int64_t cookie =
            direction == Direction::write
                ? ::nbd_aio_pwrite(nbd_, slot, request_size, offset, when_done, 0)
                : ::nbd_aio_pread(nbd_, slot, request_size, offset, when_done, 0);
        check_libnbd(cookie > 0);
        ++started;
      }
      check_libnbd(::nbd_poll(nbd_, 10'000) == 1);
    }
  }

 private:
  /// libnbd: 1 retires the command, so that nobody has to ask for it.
  static int count_up(void* count, int* error) {
    CHECK(*error == 0);
    ++*static_cast<std::uint64_t*>(count);
    return 1;
  }

  nbd_handle* nbd_;
  AlignedBuffer buffer_ = AlignedBuffer::zeroed(depth * request_size);
  RandomOffsets offsets_{disk_size};
};

/// An export with its server and its client.
class Contender {
 public:
  Contender(Bench& bench, std::string name, std::shared_ptr<nbd::Export> served)
      : name_(std::move(name)),
        bench_(bench),
        exports_(std::move(served)),
        server_(*bench.loop, exports_, {}) {
    std::array<int, 2> ends{};
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
    server_.serve(MUST(SocketStream::adopt(*bench.loop, Fd(ends[0]))));
    beside([this, fd = ends[1]] { client_.emplace(Fd(fd)); });
  }
  Contender(const Contender&) = delete;
  Contender& operator=(const Contender&) = delete;
  ~Contender() {
    beside([this] { client_.reset(); });
    bench_.run(server_.stop());
  }

  const std::string& name() const { return name_; }

  /// CPU of this thread, which serves, per request.
  double cost(Direction direction, std::uint64_t requests) {
    const std::uint64_t before = bench_.meter.read();
    beside([this, direction, requests] { client_->run(direction, requests); });
    return static_cast<double>(bench_.meter.read() - before) / static_cast<double>(requests);
  }

 private:
  /// Serves here while `work` runs on another thread.
  template <typename Work>
  void beside(Work work) {
    std::thread thread([this, &work] {
      work();
      bench_.loop->stop();
    });
    bench_.loop->run();
    thread.join();
  }

  std::string name_;
  Bench& bench_;
  OneExport exports_;
  nbd::Server server_;
  std::optional<Client> client_;
};

Json measure(Bench& bench) {
  constexpr std::array<unsigned, 3> refpoint_counts = {0, 1, 1000};
  const unsigned turns = bench.quick ? 3 : 21;
  const std::uint64_t requests = bench.quick ? 5'000 : 40'000;

  std::uint64_t file_size = disk_size;
  std::vector<std::unique_ptr<NullVolume>> volumes;
  std::vector<std::unique_ptr<Contender>> contenders;
  contenders.push_back(std::make_unique<Contender>(
      bench, "off",
      MUST(nbd::FileExport::create(std::make_unique<NullFile>(*bench.loop, file_size, data_byte),
                                   {.name = "off", .block_minimum = request_size}))));
  for (const unsigned count : refpoint_counts) {
    const std::string name = fmt::format("{}", count);
    auto& volume =
        *volumes.emplace_back(std::make_unique<NullVolume>(bench, "refs" + name, disk_size));
    volume.write_whole();
    for (unsigned i = 0; i < count; ++i) volume.make_refpoint(fmt::format("r{}", i));
    if (count > 0) volume.write_whole();
    contenders.push_back(std::make_unique<Contender>(
        bench, name, machine::make_volume_export(*volume, name, false)));
  }

  std::map<std::string, std::vector<double>> costs;
  std::map<std::string, std::vector<double>> ratios;
  for (unsigned turn = 0; turn < turns + 1; ++turn) {
    std::map<std::string, double> found;
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      Contender& contender = *contenders[(turn + i) % contenders.size()];
      found["write_" + contender.name()] = contender.cost(Direction::write, requests);
      found["read_" + contender.name()] = contender.cost(Direction::read, requests);
    }
    if (turn == 0) continue;  // warms up
    for (const auto& [name, cost] : found) costs[name].push_back(cost);
    for (const std::string kind : {"write", "read"}) {
      for (const std::string name : {"0", "1", "1000"}) {
        ratios[fmt::format("{}_{}_to_off", kind, name)].push_back(
            found[fmt::format("{}_{}", kind, name)] / found[kind + "_off"]);
      }
    }
  }
  Json result = {{"unit", bench.meter.unit()}, {"turns", turns}, {"requests_per_turn", requests}};
  for (const auto& [name, values] : costs) result["per_request"][name] = figure(values);
  for (const auto& [name, values] : ratios) result["ratios"][name] = figure(values);
  return result;
}

int run(std::vector<std::string> arguments) {
  std::string directory = std::filesystem::temp_directory_path();
  bool quick = false;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--quick") {
      quick = true;
    } else if (arguments[i] == "--directory" && i + 1 < arguments.size()) {
      directory = arguments[++i];
    } else {
      fmt::print(stderr, "usage: keeper_bench [--quick] [--directory DIR]\n");
      return 2;
    }
  }
  Bench bench(std::filesystem::absolute(directory), quick);
  fmt::print("{}\n", Json{{"keeper", measure(bench)}}.dump(2));
  return 0;
}

}  // namespace
}  // namespace berth::bench

int main(int argc, char** argv) {
  return berth::bench::run(std::vector<std::string>(argv + 1, argv + argc));
}
