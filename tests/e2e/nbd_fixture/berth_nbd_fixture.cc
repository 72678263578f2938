// berth-nbd-fixture: the NBD server without the rest of Berth, for conformance tests and
// measurements.
//
//   berth-nbd-fixture --unix PATH | --tcp HOST:PORT  [--tls DIR]  [--file NAME=PATH [--direct]]
//
// Serves these exports until SIGTERM or SIGINT, and says "ready PORT" on standard output when it
// listens:
//   disk       64 MiB of memory, with the context berth:changed:start
//   read-only  1 MiB of memory, all of it 0x5a
//   blocks     16 MiB of memory, minimum block size 4096
//   odd        1,000,003 bytes of memory
//   large      8 TiB, of which 256 MiB can be allocated
//   full       16 MiB, of which 1 MiB can be allocated
//   NAME       the file, of --file
// It prints the number of flushes that `disk` has seen when it ends.

#include <array>
#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "async/signals.h"
#include "async/socket.h"
#include "async/tls_context.h"
#include "async/uring_file.h"
#include "async/uring_loop.h"
#include "nbd/file_export.h"
#include "nbd/memory_export.h"
#include "nbd/server.h"

namespace {

using namespace berth;

struct Arguments {
  std::string unix_path;
  std::string tcp_address;
  std::string tls_directory;
  std::string file_name;
  std::string file_path;
  bool direct = false;
};

Result<Arguments> parse(const std::vector<std::string>& words) {
  Arguments arguments;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--direct") {
      arguments.direct = true;
      continue;
    }
    if (i + 1 == words.size())
      return failure(ErrorKind::invalid_argument, fmt::format("{} needs a value", words[i]));
    const std::string& value = words[i + 1];
    if (words[i] == "--unix") {
      arguments.unix_path = value;
    } else if (words[i] == "--tcp") {
      arguments.tcp_address = value;
    } else if (words[i] == "--tls") {
      arguments.tls_directory = value;
    } else if (words[i] == "--file") {
      const std::size_t equals = value.find('=');
      if (equals == std::string::npos)
        return failure(ErrorKind::invalid_argument, "--file NAME=PATH");
      arguments.file_name = value.substr(0, equals);
      arguments.file_path = value.substr(equals + 1);
    } else {
      return failure(ErrorKind::invalid_argument, fmt::format("unknown argument {}", words[i]));
    }
    ++i;
  }
  if (arguments.unix_path.empty() == arguments.tcp_address.empty()) {
    return failure(ErrorKind::invalid_argument, "one of --unix and --tcp");
  }
  return arguments;
}

std::shared_ptr<nbd::MemoryExport> memory(std::string name, std::uint64_t size,
                                          nbd::MemoryExport::Options options = {}) {
  options.info.name = std::move(name);
  options.info.size = size;
  return std::make_shared<nbd::MemoryExport>(std::move(options));
}

Result<std::shared_ptr<nbd::Export>> file_export(UringLoop& loop, const Arguments& arguments) {
  const std::size_t slash = arguments.file_path.rfind('/');
  if (slash == std::string::npos)
    return failure(ErrorKind::invalid_argument, "--file needs an absolute path");
  auto directory = TRY(open_directory(loop, arguments.file_path.substr(0, slash + 1), false));
  auto file =
      TRY(directory->open(arguments.file_path.substr(slash + 1), {.direct = arguments.direct}));
  return TRY(nbd::FileExport::create(
      std::move(file),
      {.name = arguments.file_name, .block_minimum = arguments.direct ? 4096U : 1U}));
}

Task<Result<std::shared_ptr<nbd::MemoryExport>>> add_exports(UringLoop& loop,
                                                             const Arguments& arguments,
                                                             nbd::FixedExports& exports) {
  auto disk = memory(
      "disk", 64 * MiB,
      {.info = {.description = "64 MiB of memory"}, .changed_context = "berth:changed:start"});
  auto read_only = memory("read-only", MiB, {.info = {.read_only = true}});
  const std::vector<std::byte> pattern(MiB, std::byte{0x5a});
  CO_TRY(co_await read_only->write(0, pattern, false));
  exports.add(disk);
  exports.add(std::move(read_only));
  exports.add(memory("blocks", 16 * MiB, {.info = {.block_minimum = 4096}}));
  exports.add(memory("odd", 1'000'003));
  exports.add(memory("large", 8 * TiB, {.allocated_bytes_max = 256 * MiB}));
  exports.add(memory("full", 16 * MiB, {.allocated_bytes_max = MiB}));
  if (!arguments.file_path.empty()) exports.add(CO_TRY(file_export(loop, arguments)));
  co_return disk;
}

Result<std::unique_ptr<SocketListener>> listen(UringLoop& loop, const Arguments& arguments) {
  if (!arguments.unix_path.empty()) return SocketListener::listen_unix(loop, arguments.unix_path);
  return SocketListener::listen_tcp(loop, TRY(TcpAddress::parse(arguments.tcp_address)));
}

Task<Result<void>> run(UringLoop& loop, Arguments arguments, Signals& signals) {
  nbd::FixedExports exports;
  const auto disk = CO_TRY(co_await add_exports(loop, arguments, exports));
  nbd::ServerOptions options;
  if (!arguments.tls_directory.empty()) {
    options.connection.tls = CO_TRY(
        TlsContext::server(arguments.tls_directory, TlsContext::ClientCertificates::required));
  }
  nbd::Server server(loop, exports, options);
  std::unique_ptr<SocketListener> listener = CO_TRY(listen(loop, arguments));
  std::puts(fmt::format("ready {}", listener->port()).c_str());
  std::fflush(stdout);
  server.serve(std::move(listener));
  CO_TRY(co_await signals.next());
  co_await server.stop();
  std::puts(fmt::format("flushes {}", disk->flush_count()).c_str());
  co_return Result<void>{};
}

Result<void> serve(const std::vector<std::string>& words) {
  const Arguments arguments = TRY(parse(words));
  const auto loop = TRY(UringLoop::create());
  const auto signals = TRY(Signals::create(*loop, std::array{SIGTERM, SIGINT}));
  return loop->run_until_complete(run(*loop, arguments, *signals));
}

}  // namespace

int main(int argc, char** argv) {
  spdlog::set_default_logger(spdlog::stderr_logger_mt("nbd"));
  const Result<void> served = serve({argv + 1, argv + argc});
  if (served) return 0;
  std::fprintf(stderr, "berth-nbd-fixture: %s\n", served.error().message().c_str());
  return 1;
}
