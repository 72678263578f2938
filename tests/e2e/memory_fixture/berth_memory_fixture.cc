// berth-memory-fixture: copies of a running QEMU's memory without the rest of Berth, for tests and
// measurements.
//
//   berth-memory-fixture create DIR SIZE UID     a memory object; prints its path
//   berth-memory-fixture seal MEMORY             makes a template of it
//   berth-memory-fixture load IMAGE MEMORY       fills a memory object with an image
//   berth-memory-fixture difference IMAGE MEMORY prints the first offset where they differ, or none
//   berth-memory-fixture checkpoint OPTIONS      an image and a device state of one instant
//     --pid PID --memory FILE --qmp SOCKET       of a QEMU with the preload, running
//     --image FILE --state FILE                  are made
//     --leave-stopped
//     --forget-last-round                        makes a wrong image: who compares has to find out
//     --pass-fd                                  the state goes to a pipe, not to a unix socket
//     --overlap                                  devices are saved beside the last round
//     --cgroup DIR                               of QEMU (v1, cpu), to slow it down
//
// Prints one line of JSON: the rounds, and the phases of the pause in milliseconds.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "memory/dirty_scan.h"
#include "memory/memory_image.h"
#include "memory/memory_object.h"
#include "memory/round_policy.h"

namespace {

using namespace berth;
using namespace berth::memory;
using Json = nlohmann::json;
using SteadyClock = std::chrono::steady_clock;

constexpr int patience_ms = 60'000;

/// Of an event: when QEMU sent it.
double milliseconds_of(const Json& event) {
  return event["timestamp"]["seconds"].get<double>() * 1e3 +
         event["timestamp"]["microseconds"].get<double>() / 1e3;
}

double milliseconds_since(SteadyClock::time_point start) {
  return std::chrono::duration<double, std::milli>(SteadyClock::now() - start).count();
}

sockaddr_un unix_address(const std::string& path) {
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  CHECK(path.size() < sizeof address.sun_path);
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

/// QEMU's monitor, blocking.
class Monitor {
 public:
  explicit Monitor(const std::string& path)
      : socket_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const sockaddr_un address = unix_address(path);
    CHECK(::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) ==
          0);
    read();  // the greeting
    execute("qmp_capabilities");
  }

  Json execute(const std::string& command, const Json& arguments = Json::object(), int fd = -1) {
    send(Json{{"execute", command}, {"arguments", arguments}}.dump() + '\n', fd);
    for (;;) {
      Json answer = read();
      if (answer.contains("return")) return answer["return"];
      if (answer.contains("error")) {
        fmt::print(stderr, "{}: {}\n", command, answer.dump());
        std::exit(1);
      }
      events_.push_back(std::move(answer));
    }
  }

  /// The next event of this name; others are dropped.
  Json wait_for_event(const std::string& name) {
    for (;;) {
      while (events_.empty()) events_.push_back(read());
      const Json event = std::move(events_.front());
      events_.pop_front();
      if (event.value("event", "") == name) return event;
    }
  }

  /// Until the migration is in this state.
  void wait_for_migration(const std::string& status) {
    for (;;) {
      const std::string now = wait_for_event("MIGRATION")["data"]["status"];
      if (now == status) return;
      if (now == "failed") {
        fmt::print(stderr, "migration failed: {}\n", execute("query-migrate").dump());
        std::exit(1);
      }
    }
  }

 private:
  void send(const std::string& line, int fd) {
    iovec data{.iov_base = const_cast<char*>(line.data()), .iov_len = line.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    if (fd >= 0) {
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    CHECK(::sendmsg(socket_.get(), &message, MSG_NOSIGNAL) == static_cast<ssize_t>(line.size()));
  }
  Json read() {
    std::size_t end = 0;
    while ((end = received_.find('\n')) == std::string::npos) {
      pollfd waiting{.fd = socket_.get(), .events = POLLIN, .revents = 0};
      CHECK(::poll(&waiting, 1, patience_ms) == 1);
      char bytes[4096];
      const ssize_t got = ::read(socket_.get(), bytes, sizeof bytes);
      CHECK(got > 0);
      received_.append(bytes, static_cast<std::size_t>(got));
    }
    Json line = Json::parse(received_.substr(0, end));
    received_.erase(0, end + 1);
    return line;
  }

  Fd socket_;
  std::string received_;
  std::deque<Json> events_;
};

/// Takes in what QEMU sends of its devices.
class StateReceiver {
 public:
  /// On a socket of this path, to which QEMU connects.
  explicit StateReceiver(const std::string& socket_path) : path_(socket_path) {
    ::unlink(path_.c_str());
    listener_ = Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_un address = unix_address(path_);
    CHECK(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) ==
          0);
    CHECK(::listen(listener_.get(), 1) == 0);
    std::filesystem::permissions(path_, std::filesystem::perms::all);
    thread_ = std::thread([this] { receive(Fd(::accept(listener_.get(), nullptr, nullptr))); });
  }
  /// From a pipe.
  explicit StateReceiver(Fd pipe) {
    thread_ = std::thread([this, fd = pipe.release()] { receive(Fd(fd)); });
  }
  StateReceiver(const StateReceiver&) = delete;
  StateReceiver& operator=(const StateReceiver&) = delete;
  ~StateReceiver() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }

  std::string finish() {
    thread_.join();
    return std::move(state_);
  }

 private:
  void receive(const Fd& from) {
    std::vector<char> bytes(std::size_t{256} << 10);
    for (;;) {
      const ssize_t got = ::read(from.get(), bytes.data(), bytes.size());
      CHECK(got >= 0);
      if (got == 0) return;
      state_.append(bytes.data(), static_cast<std::size_t>(got));
    }
  }

  std::string path_;
  Fd listener_;
  std::thread thread_;
  std::string state_;
};

struct Options {
  pid_t pid = 0;
  std::string memory;
  std::string qmp;
  std::string image;
  std::string state;
  std::string cgroup;
  bool leave_stopped = false;
  bool forget_last_round = false;
  bool pass_fd = false;
  bool overlap = false;
  std::uint64_t staging_max = 128 * MiB;
};

class Checkpoint {
 public:
  explicit Checkpoint(Options options) : options_(std::move(options)), monitor_(options_.qmp) {}

  Json make() {
    scan_ = MUST(DirtyScan::attach(options_.pid, options_.memory));
    writer_ = MUST(MemoryImageWriter::create(options_.memory, options_.image));
    MUST(writer_->prepare_staging(options_.staging_max));
    prepare_migration();
    copy_while_it_runs();
    stop_and_copy_the_rest();
    return std::move(report_);
  }

 private:
  void prepare_migration() {
    const auto on = [](const char* name) { return Json{{"capability", name}, {"state", true}}; };
    monitor_.execute("migrate-set-capabilities",
                     {{"capabilities", Json::array({on("x-ignore-shared"), on("events")})}});
    if (options_.pass_fd) {
      int pipe[2];
      CHECK(::pipe2(pipe, O_CLOEXEC) == 0);
      const Fd write_end(pipe[1]);
      monitor_.execute("getfd", {{"fdname", "state"}}, write_end.get());
      receiver_.emplace(Fd(pipe[0]));
    } else {
      receiver_.emplace(options_.state + ".sock");
    }
  }

  void copy_while_it_runs() {
    const std::atomic<bool> stop = false;
    auto start = SteadyClock::now();
    MUST(scan_->take());
    auto taken = SteadyClock::now();
    report_["arm_ms"] = milliseconds_since(start);
    MUST(writer_->copy_all(stop, {}, {}));
    report_["first_ms"] = milliseconds_since(taken);
    report_["first_bytes"] = writer_->bytes_written();
    report_["rounds"] = Json::array();
    RoundPolicy policy({.staging_max = options_.staging_max});
    for (bool go_on = true; go_on;) {
      start = SteadyClock::now();
      const auto dirty = MUST(scan_->take());
      const Round round{.bytes_dirty = total_length(dirty), .since_last_take = start - taken};
      taken = start;
      const double scan_ms = milliseconds_since(start);
      // What is staged need not wait for the disk. Room is left for the last round.
      MUST(writer_->copy(dirty, options_.staging_max / 2));
      Round done = round;
      done.copying = SteadyClock::now() - taken;
      const RoundDecision decision = policy.next(done);
      report_["rounds"].push_back(
          {{"bytes", done.bytes_dirty},
           {"ranges", dirty.size()},
           {"since_ms", std::chrono::duration<double, std::milli>(done.since_last_take).count()},
           {"scan_ms", scan_ms},
           {"copy_ms", milliseconds_since(taken) - scan_ms},
           {"predicted_bytes", decision.last_round_bytes},
           {"percent", decision.percent}});
      if (decision.step == RoundDecision::Step::slow_down) set_speed(decision.percent);
      go_on = decision.step != RoundDecision::Step::stop_now;
      report_["within_goal"] = decision.within_goal;
    }
  }

  void stop_and_copy_the_rest() {
    Json& pause = report_["pause_ms"];
    const auto begin = SteadyClock::now();
    auto start = begin;
    const auto phase = [&](const char* name) {
      pause[name] = milliseconds_since(start);
      start = SteadyClock::now();
    };
    monitor_.execute("stop");
    const double stopped = milliseconds_of(monitor_.wait_for_event("STOP"));
    set_speed(100);
    phase("stop");
    if (options_.overlap) migrate();
    const auto last = MUST(scan_->take());
    phase("scan");
    // Too much to be staged where the rounds have not converged: then the pause is long.
    if (!options_.forget_last_round) MUST(writer_->copy(last, 0));
    phase("stage");
    if (!options_.overlap) migrate();
    monitor_.wait_for_migration("completed");
    const std::string state = receiver_->finish();
    phase("devices");
    // Saving a device may write to the memory of its guest.
    const auto after = MUST(scan_->take());
    MUST(writer_->copy(after, 0));
    phase("scan again");
    if (!options_.leave_stopped) {
      monitor_.execute("cont");
      // From the last instruction of the guest to its next one, as QEMU saw it.
      pause["guest"] = milliseconds_of(monitor_.wait_for_event("RESUME")) - stopped;
    }
    phase("cont");
    pause["total"] = milliseconds_since(begin);
    MUST(writer_->finish());
    report_["finish_ms"] = milliseconds_since(start);
    report_["last_bytes"] = total_length(last);
    report_["last_ranges"] = last.size();
    report_["bytes_after_devices"] = total_length(after);
    report_["state_bytes"] = state.size();
    std::ofstream(options_.state, std::ios::binary) << state;
  }

  void migrate() {
    const std::string target = options_.pass_fd ? "fd:state" : "unix:" + options_.state + ".sock";
    monitor_.execute("migrate", {{"uri", target}});
  }

  /// A part, of a hundred, of all CPUs; in short periods, so that nobody waits long at once.
  void set_speed(unsigned percent) const {
    if (options_.cgroup.empty()) return;
    constexpr unsigned period_us = 10'000;
    std::ofstream(options_.cgroup + "/cpu.cfs_period_us") << period_us << std::flush;
    std::ofstream quota(options_.cgroup + "/cpu.cfs_quota_us");
    if (percent >= 100) {
      quota << -1;
    } else {
      quota << period_us * std::thread::hardware_concurrency() * percent / 100;
    }
  }

  Options options_;
  Monitor monitor_;
  std::unique_ptr<DirtyScan> scan_;
  std::unique_ptr<MemoryImageWriter> writer_;
  std::optional<StateReceiver> receiver_;
  Json report_ = Json::object();
};

Options parse(const std::vector<std::string>& words) {
  Options options;
  const std::map<std::string, bool*> flags = {{"--leave-stopped", &options.leave_stopped},
                                              {"--forget-last-round", &options.forget_last_round},
                                              {"--pass-fd", &options.pass_fd},
                                              {"--overlap", &options.overlap}};
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (const auto flag = flags.find(word); flag != flags.end()) {
      *flag->second = true;
      continue;
    }
    CHECK(i + 1 < words.size());
    const std::string& value = words[++i];
    if (word == "--pid") options.pid = std::stoi(value);
    if (word == "--memory") options.memory = value;
    if (word == "--qmp") options.qmp = value;
    if (word == "--image") options.image = value;
    if (word == "--state") options.state = value;
    if (word == "--cgroup") options.cgroup = value;
  }
  return options;
}

Result<std::string> run(const std::vector<std::string>& words) {
  if (words.size() == 4 && words[0] == "create") {
    const auto user = static_cast<uid_t>(std::stoul(words[3]));
    return create_memory_object(words[1], SystemRandom().id(), TRY(parse_size(words[2])),
                                {.uid = user, .gid = user});
  }
  if (words.size() == 2 && words[0] == "seal") {
    TRY(seal_memory_object(words[1]));
    return words[1];
  }
  if (words.size() == 3 && words[0] == "load") {
    const auto start = SteadyClock::now();
    TRY(load_memory_image(words[1], words[2]));
    return fmt::format("{:.1f} ms", milliseconds_since(start));
  }
  if (words.size() == 3 && words[0] == "difference") {
    const std::uint64_t at = TRY(first_difference(words[1], words[2]));
    return at == std::filesystem::file_size(words[1]) ? "none" : fmt::format("{}", at);
  }
  if (!words.empty() && words[0] == "checkpoint")
    return Checkpoint(parse({words.begin() + 1, words.end()})).make().dump();
  return failure(ErrorKind::invalid_argument, "see the head of berth_memory_fixture.cc");
}

}  // namespace

int main(int argc, char** argv) {
  const auto result = run({argv + 1, argv + argc});
  if (!result) {
    fmt::print(stderr, "berth-memory-fixture: {}\n", result.error().message());
    return 1;
  }
  fmt::print("{}\n", *result);
}
