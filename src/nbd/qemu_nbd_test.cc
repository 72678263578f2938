// QemuNbd with the real qemu-nbd: images of every format that can be a backing.

#include "nbd/qemu_nbd.h"

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "async/test_support.h"
#include "base/units.h"
#include "nbd/client_file.h"

namespace berth::nbd {
namespace {

int run_program(std::vector<std::string> words) {
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  pid_t child = -1;
  if (::posix_spawnp(&child, arguments[0], nullptr, nullptr, arguments.data(), environ) != 0)
    return -1;
  int status = -1;
  ::waitpid(child, &status, 0);
  return status;
}

class QemuNbdTest : public testing::Test {
 protected:
  /// 4 MiB, of which the second one is all 'x'.
  std::string make_image(const std::string& format) {
    const std::string raw = directory_ / "raw";
    const std::string image = directory_ / ("image." + format);
    std::ofstream(raw).seekp(MiB) << std::string(MiB, 'x');
    std::filesystem::resize_file(raw, 4 * MiB);
    EXPECT_EQ(run_program({"qemu-img", "convert", "-f", "raw", "-O", format, raw, image}), 0);
    return image;
  }
  Result<std::unique_ptr<QemuNbd>> start(const std::string& image, const std::string& format) {
    return run(*loop_, QemuNbd::start(*loop_, {.image = image,
                                               .format = format,
                                               .socket_path = directory_ / "a b%.sock"}));
  }

  ScratchDirectory directory_;
  std::unique_ptr<UringLoop> loop_ = UringLoop::create().value();
};

Task<Result<std::string>> read(File& file, std::uint64_t offset, std::size_t length) {
  std::string text(length, '\0');
  text.resize(
      CO_TRY(co_await file.read(offset, {reinterpret_cast<std::byte*>(text.data()), length})));
  co_return text;
}

TEST_F(QemuNbdTest, ServesImagesOfEveryFormat) {
  for (const std::string format : {"qcow2", "vmdk", "vhdx", "vdi", "vpc"}) {
    SCOPED_TRACE(format);
    const auto server = start(make_image(format), format);
    ASSERT_TRUE(server) << server.error().message();
    const auto file = MUST(run(*loop_, ClientFile::open(*loop_, (*server)->uri(), {})));
    EXPECT_GE(MUST(file->size()), 4 * MiB);
    EXPECT_EQ(MUST(run(*loop_, read(*file, MiB - 1, 4))), std::string("\0xxx", 4));
    EXPECT_EQ(MUST(run(*loop_, read(*file, 2 * MiB - 1, 2))), std::string("x\0", 2));
    if (format == "vpc" || format == "vhdx") continue;  // their blocks are larger than this
    EXPECT_EQ(MUST(file->next_data(0)), MiB);
    EXPECT_EQ(MUST(file->next_hole(MiB)), 2 * MiB);
  }
}

TEST_F(QemuNbdTest, SaysWhatQemuSays) {
  const std::string image = make_image("qcow2");
  const auto wrong_format = start(image, "vmdk");
  ASSERT_FALSE(wrong_format);
  EXPECT_THAT(wrong_format.error().message(), testing::HasSubstr("qemu-nbd"));
  EXPECT_THAT(wrong_format.error().message(), testing::HasSubstr(image));
  const auto missing = start(directory_ / "nothing", "qcow2");
  EXPECT_THAT(missing.error().message(), testing::HasSubstr("No such file"));
  EXPECT_EQ(start("relative", "qcow2").error().kind(), ErrorKind::invalid_argument);
  EXPECT_FALSE(std::filesystem::exists(directory_ / "a b%.sock"));
}

TEST_F(QemuNbdTest, EndsWithItsOwner) {
  auto server = MUST(start(make_image("qcow2"), "qcow2"));
  const pid_t pid = server->pid();
  EXPECT_EQ(::kill(pid, 0), 0);
  server.reset();
  EXPECT_EQ(::kill(pid, 0), -1);
  EXPECT_EQ(errno, ESRCH);
  EXPECT_FALSE(std::filesystem::exists(directory_ / "a b%.sock"));
}

TEST_F(QemuNbdTest, ServesSeveralClientsOneAfterTheOther) {
  const auto server = MUST(start(make_image("qcow2"), "qcow2"));
  for (int i = 0; i < 3; ++i) {
    const auto first = MUST(run(*loop_, ClientFile::open(*loop_, server->uri(), {})));
    const auto second = MUST(run(*loop_, ClientFile::open(*loop_, server->uri(), {})));
    EXPECT_EQ(MUST(run(*loop_, read(*first, MiB, 2))), "xx");
    EXPECT_EQ(MUST(run(*loop_, read(*second, MiB, 2))), "xx");
  }
}

TEST_F(QemuNbdTest, NeedsItsProgram) {
  const auto missing = run(*loop_, QemuNbd::start(*loop_, {.image = "/image",
                                                           .format = "qcow2",
                                                           .socket_path = directory_ / "socket",
                                                           .program = "/nowhere/qemu-nbd"}));
  EXPECT_EQ(missing.error().kind(), ErrorKind::not_found);
}

}  // namespace
}  // namespace berth::nbd
