#include "container/kernel_store.h"

#include <filesystem>
#include <fstream>
#include <sstream>

#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "container/fake_kernel.h"

namespace berth::container {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

constexpr const char* release = "6.1.0-test";

/// With a kernel that has built in all that a microVM needs; no real one.
class KernelStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "berth-kernels-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
    if (!find_agent()) GTEST_SKIP() << "berth-agent is not built";
    write_kernel(release, "kernel one");
    store_.emplace((directory_ / "state").string());
    MUST(store_->open());
  }
  void TearDown() override { fs::remove_all(directory_); }

  void write(const fs::path& name, const std::string& content) const {
    fs::create_directories((directory_ / name).parent_path());
    std::ofstream(directory_ / name, std::ios::binary) << content;
  }
  static std::string read(const fs::path& path) {
    std::ostringstream content;
    content << std::ifstream(path, std::ios::binary).rdbuf();
    return content.str();
  }
  void write_kernel(const std::string& called, const std::string& content) const {
    write("vmlinuz", content);
    std::string builtin;
    for (const std::string& name : microvm_modules) builtin += "kernel/" + name + ".ko\n";
    write(fs::path("modules") / called / "modules.builtin", builtin);
    write(fs::path("modules") / called / "kernel/fs/other.ko",
          "\x7f"
          "ELF other");
  }
  Result<KernelRecord> import(const std::string& called, const std::string& at,
                              const machine::VolumeJob& job = {}) const {
    return store_->import({.package = {},
                           .image = (directory_ / "vmlinuz").string(),
                           .modules = (directory_ / "modules" / called).string()},
                          at, job);
  }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(directory_ / "state/kernels"))
      found.push_back(entry.path().filename());
    return found;
  }

  fs::path directory_;
  std::optional<KernelStore> store_;
};

TEST_F(KernelStoreTest, WithoutOneItIsSaidHowToGetIt) {
  EXPECT_THAT(MUST(store_->list()), IsEmpty());
  const auto current = store_->current();
  ASSERT_FALSE(current);
  EXPECT_EQ(current.error().kind(), ErrorKind::precondition);
  EXPECT_THAT(current.error().message(), HasSubstr("berth kernel import"));
}

TEST_F(KernelStoreTest, WhatIsImportedStaysWhenItsFilesGo) {
  const auto made = MUST(import(release, "2026-01-01T00:00:00Z"));
  EXPECT_EQ(made.release, release);
  EXPECT_EQ(made.source, (directory_ / "vmlinuz").string());
  EXPECT_EQ(made.imported_at, "2026-01-01T00:00:00Z");
  fs::remove_all(directory_ / "modules");
  fs::remove(directory_ / "vmlinuz");

  const KernelStore again((directory_ / "state").string());
  MUST(again.open());
  const auto current = MUST(again.current());
  EXPECT_EQ(current.release, made.release);
  EXPECT_EQ(current.source, made.source);
  EXPECT_EQ(current.imported_at, made.imported_at);
  EXPECT_EQ(read(again.image(release)), "kernel one");
  EXPECT_TRUE(fs::exists(MUST(again.initrd(release))));
  EXPECT_THAT(names(), ElementsAre(release));
}

TEST_F(KernelStoreTest, TheNewestIsTheCurrentOne) {
  write_kernel("6.1.0-other", "kernel two");
  MUST(import("6.1.0-other", "2026-01-02T00:00:00Z"));
  MUST(import(release, "2026-01-01T00:00:00Z"));
  EXPECT_EQ(MUST(store_->current()).release, "6.1.0-other");
  MUST(import(release, "2026-01-03T00:00:00Z"));
  EXPECT_EQ(MUST(store_->current()).release, release);
  EXPECT_EQ(MUST(store_->list()).size(), 2U);
}

TEST_F(KernelStoreTest, OneThatIsThereIsReplacedWhole) {
  MUST(import(release, "2026-01-01T00:00:00Z"));
  const std::string old = MUST(store_->initrd(release));
  fs::remove(directory_ / "modules" / release / "kernel/fs/other.ko");
  write_kernel("unused", "kernel two");
  MUST(import(release, "2026-01-02T00:00:00Z"));
  EXPECT_EQ(read(store_->image(release)), "kernel two");
  EXPECT_FALSE(fs::exists(old));
  EXPECT_FALSE(fs::exists(directory_ / "state/kernels" / release / "modules/kernel/fs/other.ko"));
  EXPECT_THAT(names(), ElementsAre(release));
}

TEST_F(KernelStoreTest, AnInitramfsIsMadeOnceAndThoseOfOtherAgentsGo) {
  MUST(import(release, "2026-01-01T00:00:00Z"));
  write(fs::path("state/kernels") / release / "initrd-0123456789abcdef", "of another agent");
  write(fs::path("state/kernels") / release / "initrd-0123456789abcdef.making", "unfinished");
  const std::string made = MUST(store_->initrd(release));
  const auto written = fs::last_write_time(made);
  EXPECT_EQ(MUST(store_->initrd(release)), made);
  EXPECT_EQ(fs::last_write_time(made), written);
  std::vector<std::string> found;
  for (const auto& entry : fs::directory_iterator(directory_ / "state/kernels" / release))
    found.push_back(entry.path().filename());
  EXPECT_THAT(found, UnorderedElementsAre("vmlinuz", "modules", "kernel.json",
                                          fs::path(made).filename().string()));
}

TEST_F(KernelStoreTest, AKernelIsUnpackedWhereThatCanBeBootedAndQemuMayReadIt) {
  write_kernel(release, make_image(lz4_legacy(make_kernel()), "size"));
  MUST(import(release, "2026-01-01T00:00:00Z"));
  const fs::path unpacked = store_->unpacked(release);
  EXPECT_EQ(read(unpacked), make_kernel());
  EXPECT_EQ(fs::status(unpacked).permissions() & fs::perms::others_read, fs::perms::others_read);
  write_kernel(release, "another one");
  MUST(import(release, "2026-01-02T00:00:00Z"));
  EXPECT_EQ(store_->unpacked(release), "");
}

TEST_F(KernelStoreTest, AKernelWithoutWhatAMicroVmNeedsIsNotTakenIn) {
  MUST(import(release, "2026-01-01T00:00:00Z"));
  write("vmlinuz", "kernel two");
  write(fs::path("modules") / release / "modules.builtin", "kernel/fs/ext4/ext4.ko\n");
  const auto made = import(release, "2026-01-02T00:00:00Z");
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().kind(), ErrorKind::not_found);
  EXPECT_EQ(read(store_->image(release)), "kernel one");
  EXPECT_THAT(names(), ElementsAre(release));
}

TEST_F(KernelStoreTest, WhatIsNotThereOrHasNoNameIsRefused) {
  EXPECT_FALSE(import("nowhere", "2026-01-01T00:00:00Z"));
  EXPECT_FALSE(import("", "2026-01-01T00:00:00Z"));
  fs::remove(directory_ / "vmlinuz");
  EXPECT_FALSE(import(release, "2026-01-01T00:00:00Z"));
  EXPECT_THAT(MUST(store_->list()), IsEmpty());
  EXPECT_THAT(names(), IsEmpty());
}

TEST_F(KernelStoreTest, APackageThatIsNoneIsRefused) {
  write("no.deb", "no package");
  EXPECT_FALSE(store_->import(
      {.package = (directory_ / "no.deb").string(), .image = {}, .modules = {}}, "now", {}));
  EXPECT_THAT(names(), IsEmpty());
}

TEST_F(KernelStoreTest, LeftoversGoAndWhatCannotBeReadIsPassedOver) {
  MUST(import(release, "2026-01-01T00:00:00Z"));
  write("state/kernels/.making-abcdef/kernel/vmlinuz", "x");
  write("state/kernels/broken/kernel.json", "{");
  MUST(store_->open());
  EXPECT_THAT(names(), UnorderedElementsAre(release, "broken"));
  EXPECT_EQ(MUST(store_->list()).size(), 1U);
}

}  // namespace
}  // namespace berth::container
