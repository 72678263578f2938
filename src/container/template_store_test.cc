#include "container/template_store.h"

#include <filesystem>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <gmock/gmock.h>

#include "base/fd.h"
#include "machine/temporary_directory.h"
#include "memory/memory_object.h"

namespace berth::container {
namespace {

using machine::TemporaryDirectory;
using machine::write_text;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr std::uint64_t memory_size = std::uint64_t{64} << 20;

class TemplateStoreTest : public testing::Test {
 protected:
  static TemplateRecord named(const std::string& name, const Id128& id) {
    TemplateRecord record;
    record.recipe.name = name;
    record.recipe.specification = {.name = name,
                                   .image = "sha256:0",
                                   .arguments = {"/bin/true"},
                                   .hostname = name,
                                   .stop_signal = "SIGTERM",
                                   .memory = memory_size};
    record.id = id;
    return record;
  }
  /// As a keeper leaves it.
  void hold(const Id128& id, const std::string& says) const {
    const std::string path = MUST(memory::create_memory_object(
        memory_dir_, id, memory_size, {.uid = ::geteuid(), .gid = ::getegid()}));
    const Fd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    ASSERT_EQ(::pwrite(file.get(), says.data(), says.size(), 1 << 20),
              static_cast<ssize_t>(says.size()));
  }
  TemplateRecord make(const std::string& name, const std::string& says) {
    const Id128 id = SystemRandom().id();
    write_text(MUST(store_.begin(name, id)), "devices");
    hold(id, says);
    MUST(memory::seal_memory_object(memory::memory_object_path(memory_dir_, id)));
    return MUST(store_.finish(named(name, id)));
  }
  bool has_memory(const TemplateRecord& record) const {
    return std::filesystem::exists(memory::memory_object_path(memory_dir_, record.id));
  }

  TemporaryDirectory directory_;
  std::string memory_dir_ = "/dev/shm/berth-template-test-" + SystemRandom().id().to_string();
  TemplateStore store_{directory_.path(), memory_dir_};

  void TearDown() override { std::filesystem::remove_all(memory_dir_); }
};

TEST_F(TemplateStoreTest, WhatWasMadeIsFound) {
  const TemplateRecord made = make("web", "hello");
  EXPECT_EQ(made.device_bytes, 7);
  EXPECT_EQ(made.memory_bytes, 4096);
  EXPECT_EQ(MUST(store_.find("web")), made);
  EXPECT_THAT(store_.list(), ElementsAre(made));
  EXPECT_EQ(MUST(store_.checksum(made)), made.memory_checksum);
  EXPECT_EQ(store_.find("wob").error().kind(), ErrorKind::not_found);
  EXPECT_EQ(store_.find("../web").error().kind(), ErrorKind::invalid_argument);
}

TEST_F(TemplateStoreTest, AMemoryThatIsGoneIsLoadedAndSealed) {
  const TemplateRecord made = make("web", "hello");
  MUST(memory::remove_memory_object(memory_dir_, made.id));
  const std::string path = MUST(store_.memory(made));
  struct stat status{};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0444U);
  EXPECT_EQ(MUST(store_.checksum(made)), made.memory_checksum);
  // Whoever was at it before was killed.
  MUST(memory::remove_memory_object(memory_dir_, made.id));
  hold(made.id, "half");
  EXPECT_EQ(MUST(store_.checksum(made)), made.memory_checksum);
}

TEST_F(TemplateStoreTest, AnImageThatIsNotWhatWasWrittenIsCorrupt) {
  const TemplateRecord made = make("web", "hello");
  MUST(memory::remove_memory_object(memory_dir_, made.id));
  const std::string image = directory_.path() + "/templates/web/" + made.id.to_string() + "/memory";
  const Fd file(::open(image.c_str(), O_WRONLY | O_CLOEXEC));
  ASSERT_EQ(::pwrite(file.get(), "j", 1, 1 << 20), 1);
  EXPECT_EQ(store_.memory(made).error().kind(), ErrorKind::corrupt);
  EXPECT_FALSE(has_memory(made));
}

TEST_F(TemplateStoreTest, OneThatIsMadeAgainKeepsWhatClonesHave) {
  const TemplateRecord first = make("web", "one");
  const TemplateRecord second = make("web", "two");
  EXPECT_EQ(MUST(store_.find("web")).id, second.id);
  MUST(store_.collect("web", {first.id}));
  EXPECT_TRUE(has_memory(first));
  MUST(store_.collect("web", {}));
  EXPECT_FALSE(has_memory(first));
  EXPECT_TRUE(has_memory(second));
  EXPECT_TRUE(std::filesystem::exists(store_.devices(second)));
  EXPECT_FALSE(std::filesystem::exists(store_.devices(first)));
}

TEST_F(TemplateStoreTest, WhatWasNotFinishedGoes) {
  const Id128 id = SystemRandom().id();
  write_text(MUST(store_.begin("lost", id)), "devices");
  hold(id, "hello");
  EXPECT_THAT(store_.names(), ElementsAre("lost"));
  EXPECT_THAT(store_.list(), IsEmpty());
  MUST(store_.collect("lost", {}));
  EXPECT_THAT(store_.names(), IsEmpty());
  EXPECT_THAT(std::filesystem::exists(memory::memory_object_path(memory_dir_, id)), false);
}

TEST_F(TemplateStoreTest, OneWhoseRecordCannotBeReadIsLeftAlone) {
  const TemplateRecord made = make("web", "hello");
  write_text(directory_.path() + "/templates/web/template.json", "{");
  EXPECT_FALSE(store_.collect("web", {}));
  EXPECT_TRUE(has_memory(made));
  EXPECT_THAT(store_.list(), IsEmpty());
}

TEST_F(TemplateStoreTest, WhatIsRemovedLeavesNothing) {
  const TemplateRecord made = make("web", "hello");
  MUST(store_.remove("web"));
  EXPECT_FALSE(has_memory(made));
  EXPECT_THAT(store_.names(), IsEmpty());
  EXPECT_EQ(store_.remove("web").error().kind(), ErrorKind::not_found);
}

}  // namespace
}  // namespace berth::container
