#include "machine/vm/qemu_command.h"

#include <algorithm>
#include <set>
#include <string>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/units.h"
#include "machine/layout.h"
#include "machine/temporary_directory.h"

namespace berth::machine {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::MatchesRegex;
using testing::Not;

const Id128& machine_id() {
  static const Id128 id = MUST(Id128::parse("11111111-2222-4333-8444-555555555555"));
  return id;
}

MachineSpecification small_machine() {
  MachineSpecification machine{.name = "web", .cpus = 2, .memory = GiB};
  machine.networks = {{.mode = NetworkSpecification::Mode::user}};
  machine.agent = false;
  complete(machine, machine_id());
  return machine;
}

QemuPlaces places() {
  return {.directory = "/run/berth/web", .memory_file = "/dev/shm/web", .machine_id = machine_id()};
}

AttachedDisk disk(const std::string& name, std::uint8_t slot) {
  return {.node = "disk-" + name,
          .socket = "/run/berth/" + name + ".nbd",
          .export_name = name,
          .slot = slot};
}

/// The values of an option, in order.
std::vector<std::string> values(const std::vector<std::string>& command, std::string_view option) {
  std::vector<std::string> found;
  for (std::size_t i = 0; i + 1 < command.size(); ++i)
    if (command[i] == option) found.push_back(command[i + 1]);
  return found;
}

std::vector<std::string> build(const MachineSpecification& machine,
                               const std::vector<AttachedDisk>& disks = {},
                               const QemuPlaces& where = places()) {
  return qemu_command(machine, disks, where);
}

/// The devices that a guest sees, by id.
Json devices(const std::vector<std::string>& command) {
  Json all;
  for (const std::string& text : values(command, "-device")) {
    const Json device = Json::parse(text);
    EXPECT_FALSE(all.contains(device.at("id"))) << device;
    all[device.at("id").get<std::string>()] = device;
  }
  return all;
}

// A saved state fits only the machine that it was taken of. Whoever changes this file changes the
// machines that exist: a new version of the machine's layout has to live beside the old one then.
TEST(QemuCommand, AMachineStaysAsItsSavedStatesKnowIt) {
  MachineSpecification machine{.name = "web", .cpus = 2, .memory = GiB};
  machine.vnc = true;
  machine.kernel = {.image = "/boot/k", .initrd = "/boot/i", .command_line = "console=ttyS0 a,b"};
  machine.networks = {{.forwards = {{.host_port = 2222, .guest_port = 22}}},
                      {.mode = NetworkSpecification::Mode::tap, .tap = "tap0"}};
  complete(machine, machine_id());
  QemuPlaces where = places();
  where.kernel = "/srv/k";
  where.initrd = "/srv/i";
  AttachedDisk cdrom = disk("cd", 2);
  cdrom.node = "cdrom-2";
  cdrom.kind = AttachedDisk::Kind::cdrom;
  AttachedDisk seed = disk("seed", 0);
  seed.node = "seed";
  seed.kind = AttachedDisk::Kind::seed;
  std::string lines;
  for (const std::string& argument :
       build(machine, {disk("root", 0), disk("data", 9), cdrom, seed}, where))
    lines += argument + "\n";
  EXPECT_EQ(lines, read_text(BERTH_TEST_DATA_DIR "/vm/qemu_command.txt"));
}

TEST(QemuCommand, PlacesOnTheBusDependOnWhatADeviceIsAlone) {
  MachineSpecification everything = small_machine();
  everything.vnc = true;
  everything.agent = true;
  everything.networks.resize(machine_networks_max);
  complete(everything, machine_id());
  const Json all = devices(build(everything, {disk("a", 3), disk("b", 4)}));
  const Json few = devices(build(small_machine(), {disk("b", 4)}));
  EXPECT_LT(few.size(), all.size());
  for (const auto& [id, device] : few.items()) {
    if (id == "nic0") continue;
    EXPECT_EQ(device, all.at(id));
  }
  EXPECT_EQ(few["nic0"]["addr"], all["nic0"]["addr"]);

  std::set<std::string> taken;
  for (const auto& [id, device] : all.items())
    if (device.contains("addr"))
      EXPECT_TRUE(
          taken.insert(device["bus"].get<std::string>() + device["addr"].get<std::string>()).second)
          << device;
}

TEST(QemuCommand, CommasInPathsDoNotEndAnOption) {
  QemuPlaces where = places();
  where.directory = "/run/a,b";
  where.memory_file = "/dev/shm/c,d";
  where.kernel = "/k,ernel";
  MachineSpecification machine = small_machine();
  machine.vnc = true;
  const auto command = build(machine, {disk("e,f", 0)}, where);
  EXPECT_THAT(values(command, "-chardev"),
              ElementsAre("socket,id=qmp,path=/run/a,,b/qmp.sock,server=on,wait=off",
                          "socket,id=console,path=/run/a,,b/console.sock,server=on,wait=off,"
                          "logfile=/run/a,,b/console.log,logappend=on"));
  EXPECT_THAT(values(command, "-vnc"), ElementsAre("unix:/run/a,,b/vnc.sock"));
  EXPECT_THAT(values(command, "-kernel"), ElementsAre("/k,ernel"));
  EXPECT_EQ(Json::parse(values(command, "-object").at(0)).at("mem-path"), "/dev/shm/c,d");
  EXPECT_EQ(Json::parse(values(command, "-blockdev").at(0)).at("server").at("path"),
            "/run/berth/e,f.nbd");
}

TEST(QemuCommand, KvmOrEmulation) {
  QemuPlaces where = places();
  MachineSpecification machine = small_machine();
  EXPECT_THAT(values(build(machine, {}, where), "-accel"),
              ElementsAre("tcg,thread=multi,tb-size=128"));
  EXPECT_THAT(values(build(machine, {}, where), "-cpu"), ElementsAre("Westmere-v1,enforce"));
  machine.cpu_model = "host";
  const auto refused = check_command(machine, {}, where);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::precondition);
  EXPECT_THAT(refused.error().message(), HasSubstr("\"host\", which needs KVM"));
  where.kvm = true;
  EXPECT_TRUE(check_command(machine, {}, where));
  EXPECT_THAT(values(build(machine, {}, where), "-accel"), ElementsAre("kvm"));
  EXPECT_THAT(values(build(machine, {}, where), "-cpu"), ElementsAre("host"));
}

TEST(QemuCommand, PathsThatNoSocketCanHaveAreRefused) {
  QemuPlaces where = places();
  where.directory = "/" + std::string(socket_path_length_max, 'a');
  EXPECT_EQ(check_command(small_machine(), {}, where).error().kind(), ErrorKind::invalid_argument);
  AttachedDisk far = disk("a", 0);
  far.socket = "/" + std::string(socket_path_length_max, 'a');
  EXPECT_EQ(check_command(small_machine(), {far}, places()).error().kind(),
            ErrorKind::invalid_argument);
}

TEST(QemuCommand, WhatAMachineDoesNotHaveIsNotThere) {
  const auto command = build(small_machine());
  for (const char* option : {"-kernel", "-initrd", "-append", "-incoming", "-vnc", "-blockdev",
                             "-daemonize", "-pidfile", "-S"})
    EXPECT_THAT(command, Not(Contains(option)));
  const Json seen = devices(command);
  for (const char* id : {"vga", "usb", "tablet", "virtio-serial", "agent"})
    EXPECT_FALSE(seen.contains(id)) << id;
  EXPECT_THAT(values(command, "-display"), ElementsAre("none"));

  MachineSpecification lonely = small_machine();
  lonely.networks.clear();
  EXPECT_THAT(build(lonely), Not(Contains("-netdev")));
}

TEST(QemuCommand, WaitsForADeviceStateOnRequest) {
  QemuPlaces where = places();
  where.incoming = true;
  EXPECT_THAT(values(build(small_machine(), {}, where), "-incoming"), ElementsAre("defer"));
}

TEST(QemuCommand, NetworksAreOfTheUserOrTaps) {
  MachineSpecification machine = small_machine();
  machine.networks = {
      {.forwards = {{.host_port = 2222, .guest_port = 22},
                    {.protocol = PortForward::Protocol::udp,
                     .host_address = "0.0.0.0",
                     .host_port = 53,
                     .guest_port = 5353}}},
      {.mode = NetworkSpecification::Mode::tap, .tap = "tap0", .mac = "52:54:00:00:00:01"}};
  complete(machine, machine_id());
  const auto command = build(machine);
  EXPECT_THAT(
      values(command, "-netdev"),
      ElementsAre("user,id=net0,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp:0.0.0.0:53-:5353",
                  "tap,id=net1,ifname=tap0,script=no,downscript=no,vhost=off"));
  EXPECT_EQ(devices(command)["nic1"]["mac"], "52:54:00:00:00:01");
}

TEST(QemuCommand, ADiskOnTheCommandLineIsTheSameAsOneThatComesLater) {
  const AttachedDisk root = disk("root", 7);
  const auto command = build(small_machine(), {root});
  EXPECT_EQ(Json::parse(values(command, "-blockdev").at(0)), blockdev_add_arguments(root));
  EXPECT_EQ(devices(command)["disk-root"], device_add_arguments(root));
  EXPECT_EQ(device_add_arguments(root)["serial"], "root");
}

TEST(QemuCommand, CdsAndSeedsAreReadOnlyWhateverIsSaid) {
  AttachedDisk cdrom = disk("a", 0);
  cdrom.kind = AttachedDisk::Kind::cdrom;
  EXPECT_EQ(blockdev_add_arguments(cdrom)["read-only"], true);
  cdrom.kind = AttachedDisk::Kind::seed;
  EXPECT_EQ(blockdev_add_arguments(cdrom)["read-only"], true);
  EXPECT_EQ(blockdev_add_arguments(disk("a", 0))["read-only"], false);
}

TEST(QemuCommand, AnAddressIsMadeFromTheMachinesIdAndStays) {
  MachineSpecification machine = small_machine();
  machine.networks.assign(machine_networks_max, {});
  machine.networks[3].mac = "52:54:00:12:34:56";
  complete(machine, machine_id());
  std::set<std::string> macs;
  for (const NetworkSpecification& network : machine.networks) {
    EXPECT_THAT(network.mac, MatchesRegex("52:54:00:[0-9a-f]{2}:[0-9a-f]{2}:[0-9a-f]{2}"));
    EXPECT_TRUE(macs.insert(network.mac).second);
  }
  EXPECT_EQ(machine.networks[3].mac, "52:54:00:12:34:56");
  EXPECT_TRUE(check(machine));
  EXPECT_EQ(machine.networks[0].mac, small_machine().networks[0].mac);

  MachineSpecification again = machine;
  complete(again, MUST(Id128::parse("99999999-2222-4333-8444-555555555555")));
  EXPECT_EQ(again, machine);
  MachineSpecification other = small_machine();
  other.networks[0].mac = "";
  complete(other, MUST(Id128::parse("99999999-2222-4333-8444-555555555555")));
  EXPECT_NE(other.networks[0].mac, machine.networks[0].mac);
}

TEST(QemuCommand, AnAddressThatIsTakenIsNotGivenAgain) {
  MachineSpecification machine = small_machine();
  const std::string taken = machine.networks[0].mac;
  machine.networks = {{}, {.mac = taken}};
  complete(machine, machine_id());
  EXPECT_NE(machine.networks[0].mac, taken);
  EXPECT_TRUE(check(machine));
}

}  // namespace
}  // namespace berth::machine
