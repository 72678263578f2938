#include "control/cli/container_commands.h"

#include <gmock/gmock.h>
#include <nlohmann/json.hpp>

#include "control/cli/container_options.h"

namespace berth::control::cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::IsEmpty;

using Words = std::vector<std::string>;

/// Ours without the program's name, and what is for the container.
std::pair<Words, Words> split(std::vector<const char*> words) {
  words.insert(words.begin(), "berth");
  SplitLine line = with_command_apart(static_cast<int>(words.size()), words.data());
  EXPECT_EQ(line.words.front(), "berth");
  line.words.erase(line.words.begin());
  return {line.words, line.tail};
}

TEST(ContainerCommandsTest, WhatFollowsTheImageIsForTheContainer) {
  EXPECT_EQ(split({"container", "run", "--rm", "-e", "A=1", "app", "sh", "-c", "--rm"}),
            std::pair(Words({"container", "run", "--rm", "-e", "A=1", "app"}),
                      Words({"sh", "-c", "--rm"})));
  EXPECT_EQ(split({"template", "create", "web", "--image", "app", "--", "sh", "-c", "--warm"}),
            std::pair(Words({"template", "create", "web", "--image", "app"}),
                      Words({"sh", "-c", "--warm"})));
  EXPECT_EQ(split({"container", "create", "--name=x", "app", "--version"}),
            std::pair(Words({"container", "create", "--name=x", "app"}), Words({"--version"})));
  EXPECT_EQ(split({"container", "exec", "-it", "web", "ls", "-l"}),
            std::pair(Words({"container", "exec", "-it", "web"}), Words({"ls", "-l"})));
  EXPECT_EQ(split({"container", "run", "app"}),
            std::pair(Words({"container", "run", "app"}), Words()));
}

TEST(ContainerCommandsTest, AWordOfAnOptionIsNoImage) {
  EXPECT_EQ(
      split({"container", "run", "-w", "/x", "--memory", "1G", "-itp", "80:80", "app", "x"}),
      std::pair(Words({"container", "run", "-w", "/x", "--memory", "1G", "-itp", "80:80", "app"}),
                Words({"x"})));
  EXPECT_EQ(split({"--state-dir", "/s", "container", "run", "app", "x"}),
            std::pair(Words({"--state-dir", "/s", "container", "run", "app"}), Words({"x"})));
}

TEST(ContainerCommandsTest, AMarkBeforeTheCommandIsDropped) {
  EXPECT_EQ(split({"container", "exec", "web", "--", "ls", "--"}),
            std::pair(Words({"container", "exec", "web"}), Words({"ls", "--"})));
}

TEST(ContainerCommandsTest, AMarkBeforeTheImageIsForTheParser) {
  EXPECT_EQ(split({"container", "run", "--rm", "--", "app", "-x", "--"}),
            std::pair(Words({"container", "run", "--rm", "--", "app"}), Words({"-x", "--"})));
}

TEST(ContainerCommandsTest, OtherCommandsStayWhole) {
  for (const Words& words :
       {Words{"volume", "create", "x", "--size", "1G"}, Words{"container", "rm", "-f", "a", "b"},
        Words{"container", "logs", "a"}, Words{"container"}, Words{"--version"}, Words{}}) {
    std::vector<const char*> pointers;
    for (const std::string& word : words) pointers.push_back(word.c_str());
    EXPECT_EQ(split(pointers), std::pair(words, Words()));
  }
}

TEST(ContainerCommandsTest, AnUnfinishedLineIsNoMistakeYet) {
  EXPECT_EQ(split({"container", "run"}), std::pair(Words({"container", "run"}), Words()));
  EXPECT_EQ(split({"container", "run", "-e"}),
            std::pair(Words({"container", "run", "-e"}), Words()));
  EXPECT_THAT(split({"container", "run", "--"}).second, IsEmpty());
}

TEST(ContainerCommandsTest, APublishedPortHasThreeForms) {
  const auto port = [](unsigned host, unsigned guest) {
    return json{{"host_port", host}, {"guest_port", guest}};
  };
  EXPECT_EQ(MUST(parse_published_port("8080:80")), port(8080, 80));
  EXPECT_EQ(MUST(parse_published_port("8080:80/tcp")), port(8080, 80));
  EXPECT_EQ(MUST(parse_published_port("80")), port(0, 80));
  EXPECT_EQ(MUST(parse_published_port(":80")), port(0, 80));
  EXPECT_EQ(MUST(parse_published_port("0:65535")), port(0, 65535));
  auto with_address = port(8080, 80);
  with_address["host_address"] = "127.0.0.1";
  EXPECT_EQ(MUST(parse_published_port("127.0.0.1:8080:80")), with_address);
  with_address["host_address"] = "::1";
  EXPECT_EQ(MUST(parse_published_port("[::1]:8080:80")), with_address);
  with_address["host_port"] = 0;
  EXPECT_EQ(MUST(parse_published_port("[::1]::80")), with_address);
}

TEST(ContainerCommandsTest, WhatIsNoPortIsSaidToBeNone) {
  for (const char* text : {"", ":", "x", "80:", "80:0", "0", "65536", "80:65536", "65536:80",
                           "-1:80", "80:80/udp", ":8080:80", "1.5:80", "80 :80", "000080:80"}) {
    const auto port = parse_published_port(text);
    ASSERT_FALSE(port) << text;
    EXPECT_EQ(port.error().kind(), ErrorKind::invalid_argument);
    EXPECT_THAT(port.error().message(), HasSubstr(text));
  }
}

TEST(ContainerCommandsTest, AMountIsAVolumeAndAPath) {
  const auto mount = [](const char* volume, const char* path, bool read_only) {
    return json{{"volume", volume}, {"path", path}, {"read_only", read_only}};
  };
  EXPECT_EQ(MUST(parse_mount("data:/var/lib")), mount("data", "/var/lib", false));
  EXPECT_EQ(MUST(parse_mount("data:/var/lib:ro")), mount("data", "/var/lib", true));
  EXPECT_EQ(MUST(parse_mount("data:/var/lib:rw")), mount("data", "/var/lib", false));
  EXPECT_EQ(MUST(parse_mount("data:/a:b")), mount("data", "/a:b", false));
  for (const char* text : {"", "data", ":/x"}) EXPECT_FALSE(parse_mount(text)) << text;
}

}  // namespace
}  // namespace berth::control::cli
