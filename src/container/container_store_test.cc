#include "container/container_store.h"

#include <filesystem>

#include <gmock/gmock.h>

#include "machine/temporary_directory.h"

namespace berth::container {
namespace {

using machine::TemporaryDirectory;
using machine::write_text;
using testing::IsEmpty;
using testing::SizeIs;

constexpr const char* today = "2026-11-27T17:20:57Z";

class ContainerStoreTest : public testing::Test {
 protected:
  static ContainerSpecification named(const std::string& name) {
    return {.name = name,
            .image = "sha256:0",
            .arguments = {"/bin/true"},
            .hostname = name,
            .stop_signal = "SIGTERM"};
  }
  TemporaryDirectory directory_;
  ContainerStore store_{directory_.path()};
};

TEST_F(ContainerStoreTest, WhatWasMadeIsFound) {
  const ContainerRecord made = MUST(store_.create(named("web"), today));
  EXPECT_EQ(MUST(store_.record("web")), made);
  EXPECT_EQ(MUST(store_.find("web")), made);
  EXPECT_EQ(MUST(store_.find(made.id.to_string())), made);
  EXPECT_EQ(MUST(store_.find(made.id.to_string().substr(0, 8))), made);
  EXPECT_THAT(store_.list(), testing::ElementsAre(made));
  EXPECT_EQ(store_.find("wob").error().kind(), ErrorKind::not_found);
  EXPECT_EQ(store_.find("../web").error().kind(), ErrorKind::not_found);
}

TEST_F(ContainerStoreTest, EachHasAUserOfItsOwn) {
  const auto first = MUST(store_.create(named("a"), today));
  const auto second = MUST(store_.create(named("b"), today));
  EXPECT_NE(first.uid, second.uid);
  EXPECT_NE(first.id, second.id);
  ASSERT_TRUE(store_.remove("a"));
  EXPECT_EQ(MUST(store_.create(named("c"), today)).uid, first.uid);
}

TEST_F(ContainerStoreTest, ANameIsTakenOnce) {
  MUST(store_.create(named("web"), today));
  EXPECT_EQ(store_.create(named("web"), today).error().kind(), ErrorKind::already_exists);
  EXPECT_THAT(store_.list(), SizeIs(1));
}

TEST_F(ContainerStoreTest, StateIsKeptAndGoesWithIt) {
  MUST(store_.create(named("web"), today));
  EXPECT_EQ(MUST(store_.state("web")), ContainerState{});
  const ContainerState state{.running = true, .started_at = today};
  ASSERT_TRUE(store_.save_state("web", state));
  EXPECT_EQ(MUST(store_.state("web")), state);
  ASSERT_TRUE(store_.remove("web"));
  EXPECT_THAT(store_.list(), IsEmpty());
  EXPECT_EQ(store_.remove("web").error().kind(), ErrorKind::not_found);
  EXPECT_FALSE(std::filesystem::exists(store_.directory("web")));
}

TEST_F(ContainerStoreTest, LeftoversOfTheDeadGo) {
  MUST(store_.create(named("web"), today));
  for (const char* name : {".making-a", ".removing-b-7"}) {
    std::filesystem::create_directories(store_.directory(name));
    write_text(store_.directory(name) + "/log", "half");
  }
  ASSERT_TRUE(store_.open());
  EXPECT_THAT(store_.list(), SizeIs(1));
  EXPECT_FALSE(std::filesystem::exists(store_.directory(".making-a")));
  EXPECT_FALSE(std::filesystem::exists(store_.directory(".removing-b-7")));
}

TEST_F(ContainerStoreTest, ARecordThatCannotBeReadHidesNoOther) {
  MUST(store_.create(named("good"), today));
  MUST(store_.create(named("bad"), today));
  write_text(store_.directory("bad") + "/container.json", "{");
  EXPECT_THAT(store_.list(), SizeIs(1));
  EXPECT_EQ(store_.record("bad").error().kind(), ErrorKind::corrupt);
  // Nor does one that was copied under another name count as that.
  std::filesystem::copy(store_.directory("good"), store_.directory("copy"));
  EXPECT_THAT(store_.list(), SizeIs(1));
}

}  // namespace
}  // namespace berth::container
