#include "machine/vm/specification.h"

#include <random>
#include <string>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/units.h"
#include "machine/temporary_directory.h"
#include "machine/vm/specification_rules.h"

namespace berth::machine {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr std::string_view web_toml = R"(
name = "web"
cpus = 2
memory = "1G"
machine = "pc-q35-7.2"
cpu = "Nehalem-v1"
autostart = true
on_crash = "preserve"
stop_timeout = 90
vnc = true
agent = false

[kernel]
image = "vmlinuz"
initrd = "/boot/initrd"
command_line = "root=/dev/vda console=ttyS0"

[[disk]]
name = "root"
image = "debian.qcow2"
over_image = true
block_size = "128K"

[[disk]]
size = "10G"
read_only = true

[[disk]]
volume = "shared-data"

[[cdrom]]
image = "debian.iso"

[[network]]
mode = "user"
forward = ["2222:22", "udp:127.0.0.1:5353:53", "0.0.0.0:80:8080"]

[[network]]
mode = "tap"
tap = "tap0"
mac = "52:54:00:AB:cd:01"

[cloud_init]
user_data = """
#cloud-config
packages: [nginx]
"""

[limits]
cpus = 1.5
memory = "512M"
)";

MachineSpecification web() {
  MachineSpecification machine;
  machine.name = "web";
  machine.cpus = 2;
  machine.memory = GiB;
  machine.machine_type = "pc-q35-7.2";
  machine.cpu_model = "Nehalem-v1";
  machine.autostart = true;
  machine.on_crash = MachineSpecification::OnCrash::preserve;
  machine.stop_timeout_s = 90;
  machine.vnc = true;
  machine.agent = false;
  machine.kernel = {.image = "/srv/vmlinuz",
                    .initrd = "/boot/initrd",
                    .command_line = "root=/dev/vda console=ttyS0"};
  machine.disks = {
      {.name = "root", .block_size = 128 * KiB, .image = "/srv/debian.qcow2", .over_image = true},
      {.name = "disk1", .size = 10 * GiB, .read_only = true},
      {.name = "disk2", .volume = "shared-data"}};
  machine.cdroms = {{.image = "/srv/debian.iso"}};
  machine.networks = {
      {.forwards = {{.host_port = 2222, .guest_port = 22},
                    {.protocol = PortForward::Protocol::udp, .host_port = 5353, .guest_port = 53},
                    {.host_address = "0.0.0.0", .host_port = 80, .guest_port = 8080}}},
      {.mode = NetworkSpecification::Mode::tap, .tap = "tap0", .mac = "52:54:00:ab:cd:01"}};
  machine.cloud_init = CloudInitSpecification{.user_data = "#cloud-config\npackages: [nginx]\n"};
  machine.limits = {.cpus = 1.5, .memory = 512 * MiB};
  return machine;
}

Result<MachineSpecification> parse(std::string_view text) {
  return parse_machine_toml(text, "web.toml", "/srv");
}

/// The message for a vm.toml that has `rest` on and after its third line.
std::string refusal(std::string_view rest) {
  const auto parsed = parse("name = \"web\"\nmemory = \"1G\"\n" + std::string(rest));
  if (parsed) return "it was taken";
  EXPECT_EQ(parsed.error().kind(), ErrorKind::invalid_argument);
  return parsed.error().message();
}

TEST(MachineToml, HasEveryPartOfAMachine) {
  const auto parsed = parse(web_toml);
  ASSERT_TRUE(parsed) << parsed.error().message();
  EXPECT_EQ(*parsed, web());
}

TEST(MachineToml, WhatIsLeftOutHasDefaults) {
  const auto parsed = parse("name = 'small'\nmemory = '256M'\n");
  ASSERT_TRUE(parsed) << parsed.error().message();
  MachineSpecification small;
  small.name = "small";
  small.memory = 256 * MiB;
  small.networks = {{.mode = NetworkSpecification::Mode::user}};
  EXPECT_EQ(*parsed, small);
}

TEST(MachineToml, NetworkNoneIsNoNetwork) {
  const auto parsed = parse("name = 'a'\nmemory = '256M'\n[[network]]\nmode = 'none'\n");
  ASSERT_TRUE(parsed) << parsed.error().message();
  EXPECT_TRUE(parsed->networks.empty());
  EXPECT_THAT(refusal("[[network]]\nmode='none'\n[[network]]\n"), HasSubstr("without any other"));
  EXPECT_THAT(refusal("[[network]]\nmode='none'\ntap='t0'\n"), HasSubstr("no other key"));
}

TEST(MachineToml, SizesMayBeNumbersOfBytes) {
  const auto parsed = parse("name = 'a'\nmemory = 268435456\n");
  ASSERT_TRUE(parsed) << parsed.error().message();
  EXPECT_EQ(parsed->memory, 256 * MiB);
}

TEST(MachineToml, AMistakeIsNamedWithItsLineItsKeyAndWhatWasExpectedAndFound) {
  const auto parsed = parse("name = \"web\"\n\n\n\n\n\nmemory = true\n");
  ASSERT_FALSE(parsed);
  EXPECT_EQ(parsed.error().message(),
            "web.toml:7: memory: expected a size such as \"1G\", found true");
  EXPECT_EQ(refusal("[[disk]]\nsize='1G'\n[[disk]]\nname='x'\nsize='1000'\n"),
            "web.toml:7: disk.size: expected a multiple of 512, found 1000 bytes");
}

TEST(MachineToml, AnUnknownKeyGetsTheNearestAndAllThatThereAre) {
  EXPECT_EQ(refusal("[limits]\n\nmemroy = '1G'\n"),
            "web.toml:5: limits.memroy: there is no key \"memroy\": did you mean 'memory'? "
            "(known here: cpus, memory)");
  EXPECT_EQ(refusal("[[cdrom]]\nxyzzy = 1\n"),
            "web.toml:4: cdrom.xyzzy: there is no key \"xyzzy\" (known here: image)");
  EXPECT_THAT(refusal("disks = []\n"), HasSubstr("did you mean 'disk'?"));
}

TEST(MachineToml, AnUnknownKeyCannotHideOrDisturbTheMessage) {
  const std::string message = refusal("\"\\u001b[2J/\\n~\" = 1\n");
  EXPECT_THAT(message, StartsWith("web.toml:3: machine: there is no key \"\\u001b[2J/\\n~\""));
  EXPECT_THAT(refusal("cpu = \"\\u007f\\u009b2Jé\\u00a0\""),
              HasSubstr("found \"\\u007f\\u009b2Jé\u00a0\""));
  EXPECT_LT(refusal(std::string(100'000, 'k') + " = 1\n").size(), 500U);
}

TEST(MachineToml, ASyntaxErrorHasItsLine) {
  EXPECT_THAT(refusal("cpus = \n"), StartsWith("web.toml:3: "));
  EXPECT_THAT(refusal("cpus = 1\ncpus = 2\n"), StartsWith("web.toml:4: "));
  EXPECT_THAT(refusal("cpus = 99999999999999999999\n"), StartsWith("web.toml:3: "));
  EXPECT_THAT(refusal("vnc = \xff\xfe\n"), StartsWith("web.toml:3: "));
}

TEST(MachineToml, CharactersBeyondAsciiAreForTextsAndCommentsAlone) {
  for (const char* line : {"é = 1", "name = é", "[é]", "cpus\u00a0= 1", "cpus = 1 。"})
    EXPECT_THAT(refusal("cpus = 1\n" + std::string(line)), StartsWith("web.toml:4: ")) << line;
  EXPECT_EQ(refusal("# é\n[cloud_init]\nuser_data = \"é\\u00e9\\\\é\" # 。\n"
                    "meta_data = '''\né\\\n。'''\nnetwork_config = \"\"\"é\\\n aé\"\"\""),
            "it was taken");
  const auto continued =
      parse("name='a'\nmemory='1G'\n[cloud_init]\nuser_data = \"\"\"a\\\n  é\"\"\"");
  ASSERT_TRUE(continued) << continued.error().message();
  EXPECT_EQ(continued->cloud_init->user_data, "aé");
  EXPECT_TRUE(parse("\xef\xbb\xbfname = 'a'\nmemory = '1G'\n")) << "a byte order mark";
}

TEST(MachineToml, WhatBreaksAnAssertionOfTheParsersIsRefusedLikeAnythingElse) {
  for (const char* header : {"[[[a]]]", "[[$a]]", "[[=", "[$[disk]]", "\t[ é ]"})
    EXPECT_THAT(refusal("[limits]\n" + std::string(header) + "\n"),
                StartsWith("web.toml:4: a header begins with a key"))
        << header;
}

TEST(MachineToml, RefusesWhatHasNotTheTypeOfItsKey) {
  for (const auto& [text, expected] : std::vector<std::pair<const char*, const char*>>{
           {"cpus = '2'", "cpus: expected a whole number, 0 or more, found \"2\""},
           {"cpus = -1", "cpus: expected a whole number, 0 or more, found -1"},
           {"cpus = 1.0", "cpus: expected a whole number, 0 or more, found 1.0"},
           {"cpus = 4294967297", "found 4294967297"},
           {"vnc = 1", "vnc: expected true or false, found 1"},
           {"agent = 'yes'", "agent: expected true or false, found \"yes\""},
           {"machine = 7.2", "machine: expected a text, found 7.2"},
           {"on_crash = 'reboot'", R"(expected "restart" or "preserve", found "reboot")"},
           {"autostart = 2026-01-01", "expected true or false, found a date or a time"},
           {"kernel = 'vmlinuz'", "kernel: expected a table, found \"vmlinuz\""},
           {"disk = 'a'", "disk: expected an array of tables ([[disk]]), found \"a\""},
           {"[disk]\nsize = '1G'", "expected an array of tables ([[disk]]), found a table"},
           {"disk = [1]", "disk: expected a table, found 1"},
           {"cdrom = [[]]", "cdrom: expected a table, found an array"},
           {"[[network]]\nforward = '1:1'", "forward: expected an array of texts"},
           {"[[network]]\nmode = 'bridge'", R"(expected "user", "tap" or "none")"},
           {"[limits]\ncpus = 'two'", "limits.cpus: expected a number, found \"two\""},
           {"[limits]\ncpus = inf", "found inf"},
           {"[limits]\ncpus = nan", "found nan"},
           {"[cloud_init]\nuser_data = ['a']", "cloud_init.user_data: expected a text"}}) {
    EXPECT_THAT(refusal(text), HasSubstr(expected)) << text;
  }
}

TEST(MachineToml, NameAndMemoryAreRequired) {
  EXPECT_THAT(parse("").error().message(), HasSubstr("web.toml:1: machine: the key 'name'"));
  EXPECT_THAT(parse("name = 'a'").error().message(), HasSubstr("the key 'memory' is missing"));
  EXPECT_THAT(refusal("[kernel]\ninitrd = 'x'"), HasSubstr("the key 'image' is missing"));
}

TEST(MachineToml, RefusesSizesThatAMachineCannotHave) {
  const auto memory = [](std::string_view text) {
    return parse(fmt::format("name = 'a'\nmemory = {}\n", text)).error().message();
  };
  EXPECT_THAT(memory("'15M'"), HasSubstr("expected 16.0 MiB to 4.0 TiB, found 15.0 MiB"));
  EXPECT_THAT(memory("2"), HasSubstr("found 2 B"));
  EXPECT_THAT(memory("'5T'"), HasSubstr("to 4.0 TiB"));
  EXPECT_THAT(memory("'33M'"), HasSubstr("a multiple of 2.0 MiB"));
  EXPECT_THAT(memory("-1"), HasSubstr("expected a size such as \"1G\", found -1"));
  EXPECT_THAT(memory("'-1G'"), HasSubstr("found \"-1G\""));
  EXPECT_THAT(memory("1.5"), HasSubstr("found 1.5"));
  EXPECT_THAT(memory("'18446744073709551616'"), HasSubstr("expected a size"));
  EXPECT_THAT(memory("'17179869184G'"), HasSubstr("expected a size"));
  EXPECT_THAT(refusal("cpus = 0"), HasSubstr("expected 1 to 255, found 0"));
  EXPECT_THAT(refusal("cpus = 256"), HasSubstr("expected 1 to 255, found 256"));
  EXPECT_THAT(refusal("stop_timeout = 0"), HasSubstr("expected 1 to 86400 seconds"));
  EXPECT_THAT(refusal("[limits]\ncpus = 0.001"), HasSubstr("expected 0.01 to 1024"));
  EXPECT_THAT(refusal("[limits]\ncpus = -1"), HasSubstr("expected 0.01 to 1024"));
  EXPECT_THAT(refusal("[limits]\nmemory = '1M'"), HasSubstr("limits.memory: expected 64.0 MiB"));
}

TEST(MachineToml, RefusesNamesThatAreNone) {
  EXPECT_THAT(parse("name = 'a/b'\nmemory = '1G'").error().message(),
              HasSubstr("name: expected up to 64 letters, digits"));
  EXPECT_THAT(parse("name = \"\\u001b[2J\"\nmemory = '1G'").error().message(),
              HasSubstr("found \"\\u001b[2J\""));
  EXPECT_THAT(refusal("machine = 'q35'"), HasSubstr("expected a versioned q35"));
  for (const char* type : {"pc-q35-", "pc-q35-7", "pc-q35-7.", "pc-q35-.2", "pc-q35-7..2",
                           "pc-i440fx-7.2", "pc-q35-7.2,accel=kvm"})
    EXPECT_THAT(refusal(fmt::format("machine = '{}'", type)), HasSubstr("a versioned q35")) << type;
  for (const char* model : {"max", "base", "Nehalem,+x", "a b"})
    EXPECT_THAT(refusal(fmt::format("cpu = '{}'", model)), HasSubstr("named CPU models")) << model;
  EXPECT_TRUE(parse("name = 'a'\nmemory = '1G'\ncpu = 'host'\nmachine = 'pc-q35-4.0.1'"));
}

TEST(MachineToml, RefusesDisksThatCannotBe) {
  for (const auto& [text, expected] : std::vector<std::pair<const char*, const char*>>{
           {"[[disk]]\n", "web.toml:3: disk: a disk needs an image, a size"},
           {"[[disk]]\nname='Root'\nsize='1G'", "disk.name: expected up to 16 lower-case"},
           {"[[disk]]\nname=''\nsize='1G'", "disk.name: expected up to 16 lower-case"},
           {"[[disk]]\nname='-a'\nsize='1G'", "disk.name: expected up to 16 lower-case"},
           {"[[disk]]\nname='a23456789012345678'\nsize='1G'", "disk.name: expected up to 16"},
           {"[[disk]]\nname='disk1'\nsize='1G'\n[[disk]]\nsize='1G'",
            "web.toml:6: disk.name: two disks have the name 'disk1'"},
           {"[[disk]]\nvolume='v'\n[[disk]]\nvolume='v'", "two disks are the volume \"v\""},
           {"[[disk]]\nvolume='v'\nimage='i'", "web.toml:5: disk.image: a disk that is a volume"},
           {"[[disk]]\nvolume='v'\nsize='1G'", "disk.size: a disk that is a volume"},
           {"[[disk]]\nvolume='v'\nblock_size='64K'", "disk.block_size: a disk that is a volume"},
           {"[[disk]]\nvolume='v'\nover_image=true", "disk.over_image: a disk that is a volume"},
           {"[[disk]]\nvolume='a/b'", "disk.volume: expected up to 64 letters, digits"},
           {"[[disk]]\nsize='1G'\nover_image=true", "disk.over_image: there is no image"},
           {"[[disk]]\nsize='65T'", "disk.size: expected at most 64.0 TiB, found 65.0 TiB"},
           {"[[disk]]\nsize='1G'\nblock_size='96K'", "disk.block_size: expected a power of two"},
           {"[[disk]]\nsize='1G'\nblock_size='2K'", "disk.block_size: expected a power of two"},
           {"[[disk]]\nsize='1G'\nblock_size='4M'", "disk.block_size: expected at most 2.0 MiB"},
           {"[[disk]]\nsize='1G'\nblock_size='5G'", "disk.block_size: expected at most 2.0 MiB"},
           {"[[disk]]\nimage=\"a\\u0000b\"", "disk.image: expected a text without a zero byte"},
           {"[[cdrom]]\n", "cdrom.image: expected an absolute path, found \"\""}}) {
    EXPECT_THAT(refusal(text), HasSubstr(expected)) << text;
  }
}

TEST(MachineToml, RefusesMoreOfAThingThanAMachineTakes) {
  const auto times = [](std::size_t count, std::string_view text) {
    std::string all;
    for (std::size_t i = 0; i < count; ++i) all += text;
    return all;
  };
  EXPECT_THAT(refusal(times(25, "[[disk]]\nsize='1G'\n")), HasSubstr("at most 24 disks, found 25"));
  EXPECT_THAT(refusal(times(7, "[[cdrom]]\nimage='i'\n")), HasSubstr("at most 6 CD drives"));
  EXPECT_THAT(refusal(times(9, "[[network]]\n")), HasSubstr("at most 8 networks"));
  EXPECT_THAT(refusal("[[network]]\nforward = [" + times(65, "'1:1',") + "]"),
              HasSubstr("at most 64 forwards"));
  EXPECT_THAT(refusal("[cloud_init]\nuser_data = '" + times(600, std::string(1000, 'a')) + "'"),
              HasSubstr("cloud_init.user_data: expected at most"));
  EXPECT_THAT(refusal("[cloud_init]\nuser_data = '" + times(400, std::string(1000, 'a')) +
                      "'\nmeta_data = '" + times(400, std::string(1000, 'a')) + "'"),
              HasSubstr("shorten its texts"));
  EXPECT_THAT(refusal("#" + std::string(machine_toml_bytes_max, ' ')),
              HasSubstr("expected at most 1.0 MiB"));
}

TEST(MachineToml, RefusesNetworksThatCannotBe) {
  const std::string user = "[[network]]\n";
  const std::string tap = "[[network]]\nmode='tap'\n";
  EXPECT_THAT(refusal(tap), HasSubstr("network.tap: expected the name of a tap interface"));
  EXPECT_THAT(refusal(tap + "tap='a/b'"), HasSubstr("network.tap: expected"));
  EXPECT_THAT(refusal(tap + "tap='sixteen-letters1'"), HasSubstr("network.tap: expected"));
  EXPECT_THAT(refusal(tap + "tap='t'\n" + tap + "tap='t'"), HasSubstr("two networks use \"t\""));
  EXPECT_THAT(refusal(tap + "tap='t'\nforward=['1:1']"), HasSubstr("in mode \"user\" only"));
  EXPECT_THAT(refusal(user + "tap='t'"), HasSubstr("network.tap: a tap interface is for mode"));
  for (const char* mac : {"52:54:00:12:34", "52:54:00:12:34:5g", "53:54:00:12:34:56",
                          "00:00:00:00:00:00", "52-54-00-12-34-56", "52:54:00:12:34:56:78"})
    EXPECT_THAT(refusal(user + "mac='" + mac + "'"), HasSubstr("address of one station")) << mac;
  EXPECT_THAT(refusal(user + "mac='52:54:00:12:34:aa'\n" + user + "mac='52:54:00:12:34:AA'"),
              HasSubstr("web.toml:6: network.mac: two networks have the address"));
}

TEST(MachineToml, RefusesForwardsThatAreNone) {
  for (const char* forward : {"",
                              "22",
                              ":22",
                              "22:",
                              "0:22",
                              "22:0",
                              "65536:22",
                              "22:65536",
                              "-1:22",
                              "+1:22",
                              "a:b",
                              "icmp:1:1",
                              "tcp:22",
                              "localhost:1:1",
                              "::1:1:1",
                              "300.0.0.1:1:1",
                              "1.2.3:1:1",
                              "1:1:1:1",
                              " 1:1",
                              "1:1 ",
                              "tcp:udp:1:1",
                              "1.2.3.4:5:6:7"}) {
    EXPECT_THAT(refusal(fmt::format("[[network]]\nforward = [\n'2:2', \n'{}']", forward)),
                AllOf(StartsWith("web.toml:6: network.forward: expected [tcp:|udp:]"),
                      HasSubstr("found \"")))
        << forward;
  }
}

TEST(MachineToml, RefusesTwoForwardsOfOnePort) {
  const auto clash = [](std::string_view list) {
    return refusal("[[network]]\nforward = " + std::string(list));
  };
  constexpr const char* message = "another forward has TCP port 80 of the host already";
  EXPECT_THAT(clash("['80:1', '80:2']"), HasSubstr(message));
  EXPECT_THAT(clash("['0.0.0.0:80:1', '80:2']"), HasSubstr(message));
  EXPECT_THAT(clash("['80:1', '0.0.0.0:80:2']"), HasSubstr(message));
  EXPECT_THAT(clash("['80:1']\n[[network]]\nforward = ['80:1']"), HasSubstr(message));
  EXPECT_EQ(clash("['80:1', 'udp:80:1', '127.0.0.2:80:1', '81:1']"), "it was taken");
}

TEST(MachineToml, AKernelsOptionsNeedTheKernel) {
  MachineSpecification machine = web();
  machine.kernel.image = "";
  EXPECT_THAT(check(machine).error().message(), HasSubstr("kernel.initrd: an initrd needs"));
  machine.kernel.initrd = "";
  EXPECT_THAT(check(machine).error().message(), HasSubstr("a command line needs a kernel"));
  EXPECT_THAT(refusal("[kernel]\nimage='k'\ncommand_line='" + std::string(2048, 'a') + "'"),
              HasSubstr("kernel.command_line: expected at most 2047 bytes, found 2048"));
}

TEST(MachineToml, KeysOfAnyDepthAreRefusedWithoutHarm) {
  std::string deep;
  for (int i = 0; i < 250'000; ++i) deep += "a.";
  const std::string key = deep + "a = 1\n";
  for (const std::string& text :
       {key, "[" + deep + "a]\n", "x = {" + key + "}", "\"\"\"" + key + "\"\"\"",
        "name = \"\"\"x\"\"\"\"\" , " + key, "name = [\"\"\"x\"\"\"\", {" + key + "}]",
        "name = ['''x''''', {" + key + "}]", "x = \"\\\"\" # \"\n" + key, "x = 'a\\' \n" + key,
        "x = \"unclosed\n" + key}) {
    EXPECT_FALSE(parse(text)) << text.substr(0, 40);
  }
  EXPECT_THAT(refusal("# a.a.a.a.a.a.a.a.a\na.b.c.d.e.f.g.h.i = 1\n"),
              StartsWith("web.toml:4: a key has more than 8 parts"));
  EXPECT_EQ(refusal("[cloud_init]\nuser_data = '''\n" + key + "'''.split\n").substr(0, 11),
            "web.toml:6:");
  EXPECT_FALSE(parse("x = " + std::string(300'000, '[')));
  EXPECT_EQ(refusal("[cloud_init] # 1.2.3.4.5.6.7.8.9.10\nuser_data = '1.2.3.4.5.6.7.8.9.10'\n"
                    "meta_data = \"\"\"\n.......... \"\"..........\\\"\"\"\"\"\"\n"),
            "it was taken");
}

TEST(MachineJson, ComesBackAsItWas) {
  const auto decoded = decode_machine(encode(web()));
  ASSERT_TRUE(decoded) << decoded.error().message();
  EXPECT_EQ(*decoded, web());
  const auto reparsed = parse_json(format_json(encode(web())));
  ASSERT_TRUE(reparsed);
  EXPECT_EQ(decode_machine(*reparsed).value(), web());
}

/// Any machine that the rules allow.
MachineSpecification random_machine(std::mt19937& random) {
  const auto below = [&random](unsigned limit) { return static_cast<unsigned>(random() % limit); };
  const auto flip = [&] { return below(2) == 0; };
  const auto word = [&] {
    std::string text;
    for (unsigned i = below(8) + 1; i > 0; --i) text += static_cast<char>('a' + below(26));
    return text;
  };
  const auto path = [&] { return "/" + word() + (flip() ? "\"\\\n\x7f, =" : "é") + word(); };
  MachineSpecification machine;
  machine.name = word() + "_." + word();
  machine.cpus = 1 + below(machine_cpus_max);
  machine.memory = machine_memory_multiple * (8 + below(1'000'000));
  if (flip()) machine.machine_type = "pc-q35-" + std::to_string(below(20)) + ".1";
  if (flip()) machine.cpu_model = word();
  if (flip()) machine.kernel = {path(), flip() ? path() : "", flip() ? word() + "\t\"" : ""};
  for (unsigned i = below(machine_disks_max + 1); i > 0; --i) {
    DiskSpecification disk{.name = "d" + std::to_string(i), .read_only = flip()};
    if (flip()) {
      disk.volume = word() + std::to_string(i);
    } else {
      disk.size = std::uint64_t{512} * below(1 << 30) + 512;
      if (flip()) disk.block_size = 4096U << below(10);
      if (flip()) disk.image = path();
      disk.over_image = !disk.image.empty() && flip();
    }
    machine.disks.push_back(disk);
  }
  for (unsigned i = below(machine_cdroms_max + 1); i > 0; --i) machine.cdroms.push_back({path()});
  for (unsigned i = below(machine_networks_max + 1); i > 0; --i) {
    NetworkSpecification network;
    if (flip()) network.mac = fmt::format("52:54:00:ab:cd:{:02x}", i);
    if (flip()) {
      network.mode = NetworkSpecification::Mode::tap;
      network.tap = "tap" + std::to_string(i);
    } else {
      for (unsigned j = below(5); j > 0; --j)
        network.forwards.push_back(
            {flip() ? PortForward::Protocol::tcp : PortForward::Protocol::udp,
             flip() ? "0.0.0.0" : "10.1.2.3", static_cast<std::uint16_t>(i * 1000 + j),
             static_cast<std::uint16_t>(1 + below(65535))});
    }
    machine.networks.push_back(network);
  }
  if (flip()) machine.cloud_init = {word() + "\n\x01", flip() ? word() : "", flip() ? "ü" : ""};
  machine.vnc = flip();
  machine.agent = flip();
  machine.autostart = flip();
  if (flip()) machine.on_crash = MachineSpecification::OnCrash::preserve;
  machine.stop_timeout_s = 1 + below(machine_stop_timeout_s_max);
  if (flip())
    machine.limits = {.cpus = (1 + below(90'000)) / 97.0, .memory = 100 * MiB + below(99)};
  return machine;
}

TEST(MachineJson, EveryMachineThatMayBeComesBackAsItWas) {
  std::mt19937 random(20261125);
  for (int run = 0; run < 500; ++run) {
    const MachineSpecification machine = random_machine(random);
    const auto allowed = check(machine);
    ASSERT_TRUE(allowed) << allowed.error().message();
    const auto json = parse_json(format_json(encode(machine)));
    ASSERT_TRUE(json) << json.error().message();
    const auto decoded = decode_machine(*json);
    ASSERT_TRUE(decoded) << decoded.error().message();
    ASSERT_EQ(*decoded, machine) << json->dump(2);
  }
}

TEST(MachineJson, HasEveryKeyThatAVmTomlHas) {
  const Json json = encode(web());
  for (const TableKeys& table : machine_tables()) {
    Json where = table.name.empty() ? json : json[std::string(table.name)];
    if (where.is_array()) where = where.at(0);
    EXPECT_EQ(where.size(), table.keys.size()) << table.name;
    for (const std::string_view key : table.keys)
      EXPECT_TRUE(where.contains(std::string(key))) << table.name << "." << key;
  }
}

TEST(MachineJson, EveryValueOfAnotherTypeIsRefusedWithTheNameOfItsMember) {
  const Json json = encode(web()).flatten();
  for (const auto& [place, value] : json.items()) {
    for (const Json& wrong : {Json(-5), Json({{"x", 1}}), Json::array({Json::array()})}) {
      if (value.is_null()) continue;
      Json changed = json;
      changed[place] = "";
      changed = changed.unflatten();
      changed[Json::json_pointer(place)] = wrong;
      const auto decoded = decode_machine(changed);
      ASSERT_FALSE(decoded) << place << " " << wrong;
      EXPECT_EQ(decoded.error().kind(), ErrorKind::invalid_argument);
      EXPECT_THAT(decoded.error().message(), StartsWith(describe_place(place))) << wrong;
    }
  }
}

TEST(MachineJson, PathsAreAbsolute) {
  Json json = encode(web());
  json["disk"][0]["image"] = "debian.qcow2";
  EXPECT_THAT(decode_machine(json).error().message(),
              HasSubstr("disk[0].image: expected an absolute path, found \"debian.qcow2\""));
}

TEST(MachineJson, WhatIsNoMachineIsRefused) {
  for (const Json& json : {Json(), Json(1), Json::array(), Json("x"), Json::object()}) {
    const auto decoded = decode_machine(json);
    ASSERT_FALSE(decoded);
    EXPECT_EQ(decoded.error().kind(), ErrorKind::invalid_argument);
  }
}

}  // namespace
}  // namespace berth::machine
