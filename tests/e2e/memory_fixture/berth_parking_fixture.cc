// berth-parking-fixture: parks machines without the rest of Berth, for tests and measurements.
//
//   berth-parking-fixture COMMAND PID MEMORY CHANNEL [FILE]
//
//   use                        what private memory the machine has
//   dump FILE                  writes the machine's memory to a new file, as the machine sees it
//   read                       reads all of it
//   park FILE, restore, mapped FILE, trim, working-set FILE, prefetch FILE
//
// Prints one line of JSON; `ms` is the time that the call took.
#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/aligned_buffer.h"
#include "base/fd.h"
#include "base/units.h"
#include "memory/guest_memory.h"
#include "memory/memory_use.h"
#include "memory/page_file.h"
#include "memory/parking.h"

namespace {

using namespace berth;
using namespace berth::memory;
using Json = nlohmann::json;
using SteadyClock = std::chrono::steady_clock;

Json to_json(const MemoryUse& use) {
  return {{"guest", use.guest}, {"swapped", use.swapped}, {"process", use.process}};
}

Result<Json> read_all(const GuestMemory& memory, const std::string& path) {
  Fd fd;
  if (!path.empty()) {
    fd = Fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!fd) return errno_failure(errno, path);
  }
  const AlignedBuffer buffer(MiB);
  for (std::uint64_t at = 0; at < memory.size(); at += buffer.size()) {
    const MutableBytes bytes =
        buffer.first(std::min<std::uint64_t>(buffer.size(), memory.size() - at));
    TRY(memory.read(at, bytes));
    if (fd && ::write(fd.get(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()))
      return errno_failure(errno, path);
  }
  return Json::object();
}

Result<Json> run(const std::string& command, GuestMemory& memory, const std::string& path) {
  if (command == "use") return to_json(TRY(memory_use(memory)));
  if (command == "dump" || command == "read") return read_all(memory, path);
  if (command == "park") {
    const ParkReport report = TRY(park(memory, path));
    return Json{{"before", to_json(report.before)}, {"after", to_json(report.after)},
                {"written", report.written},        {"mapped", report.mapped},
                {"same", report.back_to_source},    {"mappings", memory.pieces().size()}};
  }
  if (command == "restore") {
    (void)TRY(restore(memory));
    return Json::object();
  }
  if (command == "mapped") return Json{{"mapped", TRY(is_mapped(memory, path))}};
  if (command == "trim") return Json{{"bytes", TRY(trim(memory))}};
  if (command == "working-set") return Json{{"bytes", TRY(record_working_set(memory, path))}};
  if (command == "prefetch") {
    auto file = TRY(PageFile::open(path));
    return Json{{"bytes", TRY(file.prefetch())}};
  }
  return failure(ErrorKind::invalid_argument, "see the head of berth_parking_fixture.cc");
}

Result<Json> run(const std::vector<std::string>& words) {
  if (words.size() < 4)
    return failure(ErrorKind::invalid_argument, "see the head of berth_parking_fixture.cc");
  const auto memory = TRY(GuestMemory::open(
      {.pid = std::stoi(words[1]), .memory_file = words[2], .channel = words[3]}));
  const auto start = SteadyClock::now();
  Json answer = TRY(run(words[0], *memory, words.size() > 4 ? words[4] : std::string()));
  answer["ms"] = std::chrono::duration<double, std::milli>(SteadyClock::now() - start).count();
  return answer;
}

}  // namespace

int main(int argc, char** argv) {
  const auto result = run(std::vector<std::string>{argv + 1, argv + argc});
  if (!result) {
    fmt::print(stderr, "berth-parking-fixture: {}: {}\n", to_string(result.error().kind()),
               result.error().message());
    return 1;
  }
  fmt::print("{}\n", result->dump());
}
