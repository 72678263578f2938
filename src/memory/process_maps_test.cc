#include "memory/process_maps.h"

#include <filesystem>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "async/test_support.h"

namespace berth::memory {
namespace {

TEST(ProcessMaps, ProgramsAreTheFilesThatHaveCode) {
  const std::string program = std::filesystem::read_symlink("/proc/self/exe");
  const ScratchDirectory directory;
  const std::string path = directory.path() + "/data";
  const Fd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_EQ(::ftruncate(file.get(), 8192), 0);
  void* mapped = ::mmap(nullptr, 8192, PROT_READ, MAP_PRIVATE, file.get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  auto maps = MUST(ProcessMaps::open(::getpid(), "test"));
  auto programs = MUST(maps.programs());
  EXPECT_FALSE(programs.contains(path));
  ASSERT_TRUE(programs.contains(program));
  EXPECT_GT(programs.at(program), 4096U);
  EXPECT_LE(programs.at(program), std::filesystem::file_size(program) + 4095);
  ::munmap(mapped, 8192);

  mapped = ::mmap(nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file.get(), 4096);
  ASSERT_NE(mapped, MAP_FAILED);
  programs = MUST(maps.programs());
  EXPECT_EQ(programs.at(path), 8192U);
  ::munmap(mapped, 4096);
}

}  // namespace
}  // namespace berth::memory
