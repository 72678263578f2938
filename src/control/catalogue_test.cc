#include "control/catalogue.h"

#include <filesystem>
#include <fstream>

#include <stdlib.h>

#include <gmock/gmock.h>

namespace berth::control {
namespace {

using testing::ElementsAre;
using testing::Field;
using testing::IsEmpty;

class CatalogueTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/berth-catalogue-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    reopen();
  }
  void TearDown() override {
    catalogue_.reset();
    std::filesystem::remove_all(directory_);
  }
  std::string path() const { return directory_ + "/catalogue.sqlite"; }
  void reopen() {
    catalogue_.reset();
    catalogue_ = MUST(Catalogue::open(path()));
  }

  std::string directory_;
  std::unique_ptr<Catalogue> catalogue_;
};

TEST_F(CatalogueTest, AGroupIsRememberedUntilEveryVolumeKnows) {
  ASSERT_TRUE(catalogue_->add_group("g", {"a", "b"}));
  ASSERT_TRUE(catalogue_->decide_group("g", GroupState::committed));
  ASSERT_TRUE(catalogue_->mark_settled("g", "a"));
  reopen();
  const auto groups = MUST(catalogue_->unsettled_groups());
  ASSERT_EQ(groups.size(), 1);
  EXPECT_EQ(groups[0].state, GroupState::committed);
  EXPECT_THAT(groups[0].unsettled, ElementsAre("b"));
  ASSERT_TRUE(catalogue_->mark_settled("g", "b"));
  EXPECT_THAT(MUST(catalogue_->unsettled_groups()), IsEmpty());
  EXPECT_EQ(MUST(catalogue_->decision_of("g")), GroupState::committed);
}

TEST_F(CatalogueTest, ADecisionIsNeverChanged) {
  ASSERT_TRUE(catalogue_->add_group("g", {"a"}));
  ASSERT_TRUE(catalogue_->decide_group("g", GroupState::aborted));
  EXPECT_TRUE(catalogue_->decide_group("g", GroupState::aborted));
  EXPECT_EQ(catalogue_->decide_group("g", GroupState::committed).error().kind(),
            ErrorKind::precondition);
  EXPECT_EQ(catalogue_->decide_group("unknown", GroupState::committed).error().kind(),
            ErrorKind::precondition);
  EXPECT_EQ(MUST(catalogue_->decision_of("unknown")), GroupState::aborted);
}

TEST_F(CatalogueTest, AnIdIsTakenOnce) {
  ASSERT_TRUE(catalogue_->add_group("g", {"a"}));
  EXPECT_FALSE(catalogue_->add_group("g", {"b"}));
  EXPECT_THAT(MUST(catalogue_->unsettled_groups())[0].unsettled, ElementsAre("a"));
}

TEST_F(CatalogueTest, JobsComeTheYoungestFirstAndOnlySoManyAreKept) {
  ASSERT_TRUE(catalogue_->save_job({.id = "one", .state = "running", .document = "{}"}));
  ASSERT_TRUE(catalogue_->save_job({.id = "two", .state = "running", .document = "{}"}));
  ASSERT_TRUE(catalogue_->save_job({.id = "one", .state = "done", .document = R"({"a":1})"}));
  reopen();
  const auto jobs = MUST(catalogue_->jobs(10));
  EXPECT_THAT(jobs, ElementsAre(Field(&JobRecord::id, "two"), Field(&JobRecord::id, "one")));
  EXPECT_EQ(jobs[1].state, "done");
  EXPECT_EQ(jobs[1].document, R"({"a":1})");
  EXPECT_EQ(MUST(catalogue_->jobs(1)).size(), 1);
}

TEST_F(CatalogueTest, AFileThatIsNoCatalogueIsCorrupt) {
  catalogue_.reset();
  std::ofstream(directory_ + "/other") << std::string(8192, 'x');
  EXPECT_EQ(Catalogue::open(directory_ + "/other").error().kind(), ErrorKind::corrupt);
  EXPECT_EQ(Catalogue::open("/nonexistent/catalogue").error().kind(), ErrorKind::permission);
}

}  // namespace
}  // namespace berth::control
