#include "container/initramfs.h"

#include <cstdlib>
#include <fstream>
#include <sstream>

#include <sys/stat.h>
#include <sys/wait.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "container/cpio.h"

namespace berth::container {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;

class InitramfsTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "berth-initramfs-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { fs::remove_all(directory_); }

  void write(const fs::path& name, const std::string& content) {
    fs::create_directories((directory_ / name).parent_path());
    std::ofstream(directory_ / name, std::ios::binary) << content;
  }
  std::string read(const fs::path& name) {
    std::ostringstream content;
    content << std::ifstream(directory_ / name, std::ios::binary).rdbuf();
    return content.str();
  }
  int shell(const std::string& script) {
    const std::string command = "cd '" + directory_.string() + "' && " + script;
    return std::system(command.c_str());  // NOLINT: the test's own words
  }
  static std::string module(const std::string& name, const std::string& depends) {
    return "\x7f" + ("ELF " + name) + '\0' + "license=GPL" + '\0' + "depends=" + depends + '\0' +
           "retpoline=Y" + '\0';
  }
  void write_kernel() {
    write("modules/kernel/a.ko", module("a", "b_1,c"));
    write("modules/kernel/deep/b-1.ko", module("b-1", "c"));
    write("modules/kernel/c.ko", module("c", ""));
    write("modules/kernel/other.ko", module("other", ""));
    write("modules/modules.builtin", "kernel/fs/ext4/ext4.ko\nkernel/lib/crc-32.ko\n");
    write("agent",
          "\x7f"
          "ELF agent");
  }

  fs::path directory_;
};

TEST_F(InitramfsTest, CpioFindsWhatWasAdded) {
  const std::string content("some\0bytes", 10);
  CpioWriter writer;
  writer.add_directory("d", 0750);
  writer.add_file("d/file", 0644, as_bytes(content));
  writer.add_file("empty", 0400, {});
  const std::string archive = writer.finish();
  EXPECT_EQ(archive.size() % 512, 0U);
  write("archive", archive);
  ASSERT_EQ(
      shell(
          "cpio -t --quiet <archive >list && mkdir out && cd out && cpio -id --quiet <../archive"),
      0);
  EXPECT_EQ(read("list"), "d\nd/file\nempty\n");
  EXPECT_EQ(read("out/d/file"), content);
  struct stat status{};
  ASSERT_EQ(::stat((directory_ / "out/d").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0750U);
  ASSERT_EQ(::stat((directory_ / "out/empty").c_str(), &status), 0);
  EXPECT_EQ(status.st_size, 0);
}

TEST_F(InitramfsTest, AModuleComesAfterWhatItNeeds) {
  write_kernel();
  const auto order = MUST(modules_to_load(directory_ / "modules", {"a", "ext4", "crc_32", "c"}));
  std::vector<std::string> names;
  for (const auto& path : order) names.push_back(path.filename().string());
  EXPECT_THAT(names, ElementsAre("c.ko", "b-1.ko", "a.ko"));
}

TEST_F(InitramfsTest, AModuleThatIsNotThereIsNotFound) {
  write_kernel();
  const auto order = modules_to_load(directory_ / "modules", {"missing"});
  ASSERT_FALSE(order);
  EXPECT_EQ(order.error().kind(), ErrorKind::not_found);
  EXPECT_FALSE(modules_to_load(directory_ / "nowhere", {"a"}));
}

TEST_F(InitramfsTest, HasTheAgentAndModulesUnpacked) {
  write_kernel();
  ASSERT_EQ(shell("xz modules/kernel/c.ko && gzip modules/kernel/deep/b-1.ko"), 0);
  const InitramfsSpec spec{directory_ / "agent", directory_ / "modules", {"a"}};
  const std::string archive = MUST(make_initramfs(spec));
  EXPECT_EQ(archive, MUST(make_initramfs(spec)));
  write("archive", archive);
  ASSERT_EQ(shell("cpio -t --quiet <archive >list && cpio -i --quiet --to-stdout modules/c.ko "
                  "<archive >c &&"
                  " cpio -i --quiet --to-stdout init <archive >init &&"
                  " cpio -i --quiet --to-stdout modules/order <archive >order"),
            0);
  EXPECT_EQ(read("list"),
            "dev\nimage\nmodules\noverlay\nproc\nroot\nsys\ndev/console\ninit\nmodules/c.ko\n"
            "modules/b_1.ko\nmodules/a.ko\nmodules/order\n");
  EXPECT_EQ(read("c"), module("c", ""));
  EXPECT_EQ(read("init"),
            "\x7f"
            "ELF agent");
  EXPECT_EQ(read("order"), "c.ko\nb_1.ko\na.ko\n");
}

}  // namespace
}  // namespace berth::container
