// The command line, given to the QEMU that is installed: that it takes every option, and what a
// guest sees of the machine. Guests are boot sectors, which a disk server of others' serves.

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/fd.h"
#include "base/units.h"
#include "machine/temporary_directory.h"
#include "machine/vm/qemu_command.h"

namespace berth::machine {
namespace {

using std::string_literals::operator""s;
using std::string_view_literals::operator""sv;
using testing::HasSubstr;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds limit{60};  // of any one wait; two seconds do on an idle host

Fd connect_unix(const std::string& path) {
  Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{.sun_family = AF_UNIX};
  CHECK(path.size() < sizeof address.sun_path);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return {};
  const timeval patience{.tv_sec = limit.count()};
  ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  return socket;
}

/// A child of the test's, killed with it.
class Child {
 public:
  Child(const std::vector<std::string>& command, const std::string& log) : log_(log) {
    std::vector<char*> argv;
    for (const std::string& argument : command) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    pid_ = ::fork();
    CHECK(pid_ >= 0);
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
      ::dup2(out, STDOUT_FILENO);
      ::dup2(out, STDERR_FILENO);
      ::execvp(argv[0], argv.data());
      ::_exit(127);
    }
    pidfd_ = Fd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
    CHECK(bool(pidfd_));
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (pid_ > 0) ::kill(pid_, SIGKILL);
    wait_for_end();
  }

  void terminate() const { ::kill(pid_, SIGTERM); }
  std::string output() const { return read_text(log_); }

  /// Looks again and again until `done`, or until the process has ended or the limit is over.
  bool wait_until(const std::function<bool()>& done) const {
    const auto end = Clock::now() + limit;
    while (!done()) {
      if (Clock::now() > end || has_ended_within(5)) return done();
    }
    return true;
  }

  /// The exit status as of wait(2), or -1.
  int wait_for_end() {
    if (pid_ <= 0) return -1;
    if (!has_ended_within(std::chrono::milliseconds(limit).count())) return -1;
    int status = -1;
    ::waitpid(std::exchange(pid_, -1), &status, 0);
    return status;
  }

 private:
  bool has_ended_within(std::int64_t milliseconds) const {
    pollfd ended{.fd = pidfd_.get(), .events = POLLIN, .revents = 0};
    return ::poll(&ended, 1, static_cast<int>(milliseconds)) == 1;
  }

  std::string log_;
  pid_t pid_ = -1;
  Fd pidfd_;
};

/// Just enough of QMP to ask.
class Monitor {
 public:
  explicit Monitor(Fd socket) : socket_(std::move(socket)) {
    read_line();
    ask("qmp_capabilities");
  }

  /// The whole answer: with `return`, or with `error`.
  Json ask(std::string_view command, const Json& arguments = Json::object()) {
    const std::string line = Json{{"execute", command}, {"arguments", arguments}}.dump() + "\n";
    if (::send(socket_.get(), line.data(), line.size(), MSG_NOSIGNAL) !=
        static_cast<ssize_t>(line.size()))
      return {};
    while (true) {
      Json answer = read_line();
      if (answer.is_null() || !answer.contains("event")) return answer;
    }
  }
  std::string status() { return ask("query-status").at("return").at("status"); }

 private:
  Json read_line() {
    while (!buffer_.contains('\n')) {
      std::array<char, 4096> piece{};
      const ssize_t got = ::recv(socket_.get(), piece.data(), piece.size(), 0);
      if (got <= 0) return {};
      buffer_.append(piece.data(), static_cast<std::size_t>(got));
    }
    const std::string line = buffer_.substr(0, buffer_.find('\n'));
    buffer_.erase(0, line.size() + 1);
    return Json::parse(line);
  }

  Fd socket_;
  std::string buffer_;
};

/// A sector that says `message` on the serial console, runs `code`, and halts.
std::string boot_sector(std::string_view message, std::string_view code = "") {
  // xor ax, ax; mov ds, ax; cld; mov dx, 0x3f8; mov si, MESSAGE;
  // next: lodsb; test al, al; jz done; out dx, al; jmp next; done:
  std::string sector =
      "\x31\xc0\x8e\xd8\xfc\xba\xf8\x03\xbe\x00\x00\xac\x84\xc0\x74\x03\xee\xeb\xf8"s;
  sector += code;
  sector += "\xf4\xeb\xfd"sv;  // halt: hlt; jmp halt
  const auto at = static_cast<std::uint16_t>(0x7c00 + sector.size());
  sector[9] = static_cast<char>(at & 0xff);
  sector[10] = static_cast<char>(at >> 8);
  sector += message;
  sector.resize(510);
  return sector + "\x55\xaa";
}

/// El Torito without emulation: as much of ISO 9660 as a firmware looks at.
std::string bootable_cd(std::string_view message) {
  constexpr std::size_t sector = 2048;
  constexpr std::size_t catalog = 19;
  constexpr std::size_t image = 20;
  std::string cd(21 * sector, '\0');
  const auto put = [&cd](std::size_t at, std::string_view bytes) {
    cd.replace(at, bytes.size(), bytes);
  };
  put(16 * sector,
      "\x01"
      "CD001\x01"sv);
  put(17 * sector,
      "\x00"
      "CD001\x01"
      "EL TORITO SPECIFICATION"sv);
  cd[17 * sector + 0x47] = static_cast<char>(catalog);
  put(18 * sector,
      "\xff"
      "CD001\x01"sv);
  put(catalog * sector, "\x01"sv);
  put(catalog * sector + 28, "\xaa\x55\x55\xaa"sv);  // a checksum, and the signature
  put(catalog * sector + 32, "\x88\x00\x00\x00\x00\x00\x04\x00"sv);
  cd[catalog * sector + 40] = static_cast<char>(image);
  put(image * sector, boot_sector(message));
  return cd;
}

class QemuStart : public testing::Test {
 protected:
  void SetUp() override {
    if (::access(places_.program.c_str(), X_OK) != 0)
      GTEST_SKIP() << places_.program << " is not installed";
    machine_.name = "web,1";  // a comma must not end an option
    machine_.cpus = 2;
    machine_.memory = 128 * MiB;
    machine_.networks = {{.forwards = {}}};
    places_.directory = directory_ / "a,b";
    ::mkdir(places_.directory.c_str(), 0700);
    places_.memory_file = directory_ / "memory";
    places_.machine_id = MUST(Id128::parse("11111111-2222-4333-8444-555555555555"));
    complete(machine_, places_.machine_id);
    CHECK(std::ofstream(places_.memory_file).good());
    CHECK(::truncate(places_.memory_file.c_str(), static_cast<off_t>(machine_.memory)) == 0);
  }

  void start(const std::vector<AttachedDisk>& disks = {},
             const std::vector<std::string>& prefix = {}) {
    std::vector<std::string> command = prefix;
    for (std::string& argument : qemu_command(machine_, disks, places_))
      command.push_back(std::move(argument));
    qemu_ = std::make_unique<Child>(command, directory_ / "qemu.log");
    Fd socket;
    qemu_->wait_until([&] { return bool(socket = connect_unix(places_.directory + "/qmp.sock")); });
    ASSERT_TRUE(socket) << qemu_->output();
    monitor_ = std::make_unique<Monitor>(std::move(socket));
  }

  /// Serves `content`, and zeros after it, as a disk of 1 MiB.
  AttachedDisk serve(const std::string& name, std::uint8_t slot, const std::string& content = "",
                     AttachedDisk::Kind kind = AttachedDisk::Kind::disk) {
    const std::string file = directory_ / (name + ".raw");
    write_text(file, content);
    CHECK(::truncate(file.c_str(), MiB) == 0);
    const std::string socket = directory_ / (name + ",nbd");
    servers_.push_back(std::make_unique<Child>(
        std::vector<std::string>{"qemu-nbd", "-f", "raw", "-x", "the export", "-e", "32", "-t",
                                 "-k", socket, file},
        directory_ / (name + ".log")));
    EXPECT_TRUE(servers_.back()->wait_until([&] { return bool(connect_unix(socket)); }))
        << servers_.back()->output();
    return {
        .node = name, .socket = socket, .export_name = "the export", .kind = kind, .slot = slot};
  }

  std::string console() const { return read_text(places_.directory + "/console.log"); }
  bool console_says(std::string_view message) const {
    return qemu_->wait_until([&] { return console().contains(message); });
  }
  bool becomes(std::string_view status) const {
    return qemu_->wait_until([&] { return monitor_->status() == status; });
  }

  TemporaryDirectory directory_;
  MachineSpecification machine_;
  QemuPlaces places_;
  std::vector<std::unique_ptr<Child>> servers_;
  std::unique_ptr<Child> qemu_;
  std::unique_ptr<Monitor> monitor_;
};

TEST_F(QemuStart, ABareMachineRunsWithoutAComplaint) {
  start();
  EXPECT_EQ(monitor_->status(), "running");
  EXPECT_EQ(monitor_->ask("query-name").at("return").at("name"), "web,1");
  EXPECT_EQ(monitor_->ask("query-uuid").at("return").at("UUID"), places_.machine_id.to_string());
  EXPECT_EQ(monitor_->ask("query-cpus-fast").at("return").size(), 2U);
  EXPECT_TRUE(console_says("SeaBIOS"));
  EXPECT_EQ(qemu_->output(), "");
  EXPECT_THAT(directory_.names(), testing::Not(testing::Contains("vnc.sock")));
}

TEST_F(QemuStart, AMachineWithEverythingRunsWithoutAComplaint) {
  machine_.vnc = true;
  machine_.networks = {
      {.forwards = {{.host_address = "127.0.0.77", .host_port = 20022, .guest_port = 22},
                    {.protocol = PortForward::Protocol::udp,
                     .host_address = "127.0.0.77",
                     .host_port = 20053,
                     .guest_port = 53}}}};
  machine_.networks.resize(machine_networks_max);
  complete(machine_, places_.machine_id);
  std::vector<AttachedDisk> disks;
  disks.push_back(serve("disk-root", 0));
  disks.push_back(serve("disk-last", machine_disks_max - 1));
  disks.back().read_only = true;
  disks.push_back(serve("cdrom-0", 0, "", AttachedDisk::Kind::cdrom));
  disks.push_back(serve("cdrom-5", machine_cdroms_max - 1, "", AttachedDisk::Kind::cdrom));
  disks.push_back(serve("seed", 0, "", AttachedDisk::Kind::seed));
  start(disks);
  EXPECT_EQ(monitor_->status(), "running");
  EXPECT_EQ(qemu_->output(), "");
  for (const char* name : {"agent.sock", "console.sock", "vnc.sock"})
    EXPECT_TRUE(connect_unix(places_.directory + "/" + name)) << name;
}

TEST_F(QemuStart, ATapWorksInTheSandbox) {
  if (::geteuid() != 0 || ::access("/usr/sbin/ip", X_OK) != 0)
    GTEST_SKIP() << "needs root and iproute2, for a tap in a network namespace of its own";
  machine_.networks = {{.mode = NetworkSpecification::Mode::tap, .tap = "tap0"},
                       {.mode = NetworkSpecification::Mode::user}};
  complete(machine_, places_.machine_id);
  start({}, {"unshare", "--net", "sh", "-c", "ip tuntap add tap0 mode tap && exec \"$@\"", "sh"});
  EXPECT_EQ(monitor_->status(), "running");
  EXPECT_EQ(qemu_->output(), "");
}

TEST_F(QemuStart, WaitsForADeviceStateWhenToldTo) {
  places_.incoming = true;
  start();
  EXPECT_EQ(monitor_->status(), "inmigrate");
}

TEST_F(QemuStart, TheDiskInTheLowestSlotIsBooted) {
  // The order on the command line does not matter.
  std::vector<AttachedDisk> disks;
  disks.push_back(serve("disk-b", 9, boot_sector("booted slot 9")));
  disks.push_back(serve("seed", 0, boot_sector("booted the seed"), AttachedDisk::Kind::seed));
  disks.push_back(serve("cdrom-0", 0, bootable_cd("booted a CD"), AttachedDisk::Kind::cdrom));
  disks.push_back(serve("disk-a", 1, boot_sector("booted slot 1")));
  start(disks);
  EXPECT_TRUE(console_says("booted")) << console();
  EXPECT_THAT(console(), HasSubstr("booted slot 1"));
}

TEST_F(QemuStart, ACdIsBootedWhereTheFirstDiskIsEmpty) {
  std::vector<AttachedDisk> disks;
  disks.push_back(serve("cdrom-1", 1, bootable_cd("booted CD 1"), AttachedDisk::Kind::cdrom));
  disks.push_back(serve("cdrom-0", 0, bootable_cd("booted CD 0"), AttachedDisk::Kind::cdrom));
  disks.push_back(serve("disk-root", 0));
  disks.push_back(serve("seed", 0, boot_sector("booted the seed"), AttachedDisk::Kind::seed));
  start(disks);
  EXPECT_TRUE(console_says("booted")) << console();
  EXPECT_THAT(console(), HasSubstr("booted CD 0"));
}

TEST_F(QemuStart, AGuestThatPowersOffStaysAsShutDown) {
  // mov dx, 0x604; mov ax, 0x2000; out dx, ax: the sleep button of ICH9's ACPI, S5
  start({serve("disk-root", 0, boot_sector("bye", "\xba\x04\x06\xb8\x00\x20\xef"s))});
  EXPECT_TRUE(becomes("shutdown")) << console();
  EXPECT_TRUE(monitor_->ask("quit").contains("return"));
  EXPECT_EQ(qemu_->wait_for_end(), 0);
}

TEST_F(QemuStart, AGuestThatPanicsStaysAsItIs) {
  // mov dx, 0x505; mov al, 1; out dx, al: pvpanic's "panicked"
  start({serve("disk-root", 0, boot_sector("alas", "\xba\x05\x05\xb0\x01\xee"))});
  EXPECT_TRUE(becomes("guest-panicked")) << console();
  EXPECT_TRUE(monitor_->ask("system_reset").contains("return"));
  EXPECT_TRUE(monitor_->ask("cont").contains("return"));
  EXPECT_TRUE(becomes("guest-panicked"));
}

TEST_F(QemuStart, AGuestThatRebootsRunsAgain) {
  // mov dx, 0x64; mov al, 0xfe; out dx, al: the keyboard controller's reset
  start({serve("disk-root", 0, boot_sector("again\n", "\xba\x64\x00\xb0\xfe\xee"s))});
  EXPECT_TRUE(qemu_->wait_until([&] {
    const std::string said = console();
    return said.find("again") != said.rfind("again");
  })) << console();
}

TEST_F(QemuStart, TheConsoleLogMayBeTruncatedWhileQemuWrites) {
  start({serve("disk-root", 0, boot_sector("once more\n", "\xba\x64\x00\xb0\xfe\xee"s))});
  ASSERT_TRUE(console_says("once more"));
  ASSERT_EQ(::truncate((places_.directory + "/console.log").c_str(), 0), 0);
  ASSERT_TRUE(console_says("once more"));
  EXPECT_FALSE(console().contains('\0')) << "a hole: QEMU did not append";
}

TEST_F(QemuStart, EndsOnATerminationSignal) {
  start();
  qemu_->terminate();
  EXPECT_EQ(qemu_->wait_for_end(), 0);
}

/// What QEMU says of the device and the block node of a disk.
Json seen(Monitor& monitor, const std::string& id) {
  Json found;
  for (const char* property : {"serial", "bootindex", "num-queues", "rerror", "werror",
                               "write-cache", "addr", "vectors", "discard", "share-rw"}) {
    found[property] =
        monitor.ask("qom-get", {{"path", "/machine/peripheral/" + id}, {"property", property}});
  }
  const Json nodes = monitor.ask("query-named-block-nodes").at("return");
  for (const Json& node : nodes)
    if (node.at("node-name") == id) found["node"] = node;
  found["bus"] =
      monitor.ask("qom-get", {{"path", "/machine/peripheral/" + id}, {"property", "parent_bus"}});
  return found;
}

TEST_F(QemuStart, ADiskThatComesLaterIsTheSameAsOneFromTheStart) {
  const AttachedDisk first = serve("disk-root", 0);
  const AttachedDisk second = serve("disk-data", 5);
  start({first, second});
  const Json from_the_start = seen(*monitor_, "disk-data");
  EXPECT_EQ(from_the_start.at("serial").at("return"), "data") << from_the_start;
  ASSERT_TRUE(from_the_start.contains("node"));
  monitor_->ask("quit");
  ASSERT_EQ(qemu_->wait_for_end(), 0);

  start({first});
  const Json added = monitor_->ask("blockdev-add", blockdev_add_arguments(second));
  EXPECT_TRUE(added.contains("return")) << added;
  const Json plugged = monitor_->ask("device_add", device_add_arguments(second));
  EXPECT_TRUE(plugged.contains("return")) << plugged;
  EXPECT_EQ(seen(*monitor_, "disk-data"), from_the_start);
  EXPECT_EQ(monitor_->status(), "running");
}

TEST_F(QemuStart, EveryDiskOfAFullMachineCanComeLater) {
  start({});
  AttachedDisk disk = serve("disk-0", 0);
  for (std::uint8_t slot = 0; slot < machine_disks_max; ++slot) {
    disk.slot = slot;
    disk.node = fmt::format("disk-{}", slot);
    disk.read_only = true;
    const Json added = monitor_->ask("blockdev-add", blockdev_add_arguments(disk));
    ASSERT_TRUE(added.contains("return")) << added;
    const Json plugged = monitor_->ask("device_add", device_add_arguments(disk));
    ASSERT_TRUE(plugged.contains("return")) << slot << plugged;
  }
}

}  // namespace
}  // namespace berth::machine
