// A cut over several volumes, held to DESIGN §5, rule 6:
//   - every gate is closed before any volume advances;
//   - the group's points are there in all volumes or in none, whatever fails and wherever the
//   daemon dies;
//   - the decision is durable before any volume hears of it.

#include "control/group_cut.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include <stdlib.h>

#include <gmock/gmock.h>
#include <nlohmann/json.hpp>

#include "control/run_for_test.h"
#include "machine/control_protocol.h"

namespace berth::control {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// What happened, over all volumes, in order: "a cut.begin".
using Journal = std::vector<std::string>;

/// A volume with the points of a keeper, as far as cuts go.
class FakeVolume final : public KeeperChannel {
 public:
  FakeVolume(std::string name, Journal& journal) : name_(std::move(name)), journal_(journal) {}

  Async<Result<json>> call(std::string method, json params, CallOptions options) override {
    journal_.push_back(name_ + " " + method);
    if (on_call) on_call(method);
    if (failures.contains(method)) co_return failure(failures.at(method), "told to fail");
    if (method == "cut.begin") {
      gate_closed = true;
      begun_ = params;
      co_return json{{"ticket", 1}};
    }
    if (method == "cut.commit") {
      gate_closed = false;
      if (options.progress) options.progress({.phase = "saving"});
      if (options.progress) options.progress({.phase = std::string(machine::phase_writes_go_on)});
      journal_.push_back(name_ + " durable");
      provisional[begun_["group"].get<std::string>()] = begun_.value("checkpoint", "");
      co_return outcome(begun_);
    }
    if (method == "cut.abort") gate_closed = false;
    if (method == "checkpoint.create" || method == "refpoint.create") co_return outcome(params);
    if (method == "group.settle") settle(params);
    if (method == "checkpoint.list") co_return json{{"checkpoints", list()}, {"complete", true}};
    if (method == "refpoint.list") co_return json{{"refpoints", json::array()}, {"complete", true}};
    co_return json::object();
  }

  std::map<std::string, ErrorKind> failures;  // by method
  std::function<void(const std::string& method)> on_call;
  bool gate_closed = false;
  std::map<std::string, std::string> provisional;  // checkpoints by group
  std::set<std::string> checkpoints;

 private:
  static json outcome(const json& params) {
    return {{"epoch", 7},
            {"gate_closed_us", 120},
            {"refpoint", nullptr},
            {"checkpoint",
             {{"name", params.value("checkpoint", params.value("name", ""))},
              {"epoch", 7},
              {"durability", "durable"},
              {"size", 4096},
              {"created_at", "2026-11-23T06:00:00Z"},
              {"held_bytes", 0},
              {"group", params.value("group", "00000000-0000-0000-0000-000000000000")},
              {"provisional", true},
              {"lost", false}}}};
  }

  void settle(const json& params) {
    const auto found = provisional.find(params["group"].get<std::string>());
    if (found == provisional.end()) return;
    if (params["committed"] == true) checkpoints.insert(found->second);
    provisional.erase(found);
  }

  json list() const {
    json all = json::array();
    for (const auto& [group, name] : provisional) {
      all.push_back({{"name", name}, {"group", group}, {"provisional", true}});
    }
    for (const auto& name : checkpoints) all.push_back({{"name", name}, {"provisional", false}});
    return all;
  }

  std::string name_;
  Journal& journal_;
  json begun_;
};

class GroupCutTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/berth-cut-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    open_catalogue();
  }
  void TearDown() override {
    catalogue_.reset();
    std::filesystem::remove_all(directory_);
  }

  /// A new daemon on the same catalogue.
  void open_catalogue() {
    cuts_.reset();
    catalogue_.reset();
    catalogue_ = MUST(Catalogue::open(directory_ + "/catalogue.sqlite"));
    cuts_ = std::make_unique<GroupCuts>(io_.get_executor(), workers_, *catalogue_, events_);
  }

  Result<json> cut(std::function<void()> writes_go_on = {}) {
    return run_for_test(io_, cuts_->cut({{"a", &a_}, {"b", &b_}, {"c", &c_}},
                                        {.checkpoint = "night",
                                         .refpoint = {},
                                         .durability = "durable",
                                         .writes_go_on = std::move(writes_go_on)}));
  }
  Result<void> settle(FakeVolume& volume, std::string name) {
    return run_for_test(io_, cuts_->settle_volume(volume, std::move(name)));
  }

  /// In all volumes or in none, and none waits.
  void expect_everywhere(bool there) {
    for (const FakeVolume* volume : {&a_, &b_, &c_}) {
      EXPECT_EQ(volume->checkpoints.contains("night"), there);
      EXPECT_THAT(volume->provisional, IsEmpty());
      EXPECT_FALSE(volume->gate_closed);
    }
  }

  std::string directory_;
  boost::asio::io_context io_{1};
  boost::asio::thread_pool workers_{1};
  EventLog events_{io_.get_executor()};
  std::unique_ptr<Catalogue> catalogue_;
  std::unique_ptr<GroupCuts> cuts_;
  Journal journal_;
  FakeVolume a_{"a", journal_};
  FakeVolume b_{"b", journal_};
  FakeVolume c_{"c", journal_};
};

TEST_F(GroupCutTest, EveryGateIsClosedBeforeAnyVolumeAdvances) {
  const auto made = cut();
  ASSERT_TRUE(made) << made.error().message();
  EXPECT_EQ((*made)["volumes"].size(), 3);
  EXPECT_EQ((*made)["volumes"][1]["checkpoint"]["name"], "night");
  EXPECT_EQ((*made)["volumes"][1]["checkpoint"]["group"], (*made)["group"]);
  EXPECT_THAT(journal_,
              ElementsAre("a cut.begin", "b cut.begin", "c cut.begin", "a cut.commit", "a durable",
                          "b cut.commit", "b durable", "c cut.commit", "c durable",
                          "a group.settle", "b group.settle", "c group.settle"));
  expect_everywhere(true);
  EXPECT_THAT(*catalogue_->unsettled_groups(), IsEmpty());
}

TEST_F(GroupCutTest, TheDecisionIsDurableBeforeAnyVolumeHearsOfIt) {
  GroupState decided_when_settled = GroupState::prepared;
  a_.on_call = [&](const std::string& method) {
    const auto groups = catalogue_->unsettled_groups();
    ASSERT_EQ(groups->size(), 1);
    if (method == "cut.begin" || method == "cut.commit")
      EXPECT_EQ(groups->front().state, GroupState::prepared);
    if (method == "group.settle") decided_when_settled = groups->front().state;
  };
  ASSERT_TRUE(cut());
  EXPECT_EQ(decided_when_settled, GroupState::committed);
}

TEST_F(GroupCutTest, WhoWaitsForWritesIsToldOnceWhenTheLastGateHasOpened) {
  ASSERT_TRUE(cut([&] { journal_.emplace_back("told"); }));
  EXPECT_EQ(std::ranges::count(journal_, "told"), 1);
  const auto at = [&](const char* what) { return std::ranges::find(journal_, what); };
  EXPECT_LT(at("c cut.commit"), at("told"));
  EXPECT_LT(at("told"), at("c durable"));
}

TEST_F(GroupCutTest, NobodyIsToldThatWritesGoOnAfterACutThatWasNotMade) {
  c_.failures["cut.commit"] = ErrorKind::timed_out;
  bool told = false;
  EXPECT_FALSE(cut([&] { told = true; }));
  EXPECT_FALSE(told);
}

TEST_F(GroupCutTest, AVolumeAloneNeedsNoGroup) {
  const auto made = run_for_test(
      io_,
      cuts_->cut({{"a", &a_}}, {.checkpoint = "night", .refpoint = {}, .durability = "volatile"}));
  ASSERT_TRUE(made) << made.error().message();
  EXPECT_TRUE((*made)["group"].is_null());
  EXPECT_THAT(journal_, ElementsAre("a checkpoint.create"));
}

TEST_F(GroupCutTest, AGateThatDoesNotCloseAbortsTheOthers) {
  b_.failures["cut.begin"] = ErrorKind::already_exists;
  const auto made = cut();
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().kind(), ErrorKind::already_exists);
  EXPECT_THAT(made.error().message(), HasSubstr("volume 'b'"));
  EXPECT_THAT(journal_, testing::Contains("a cut.abort"));
  EXPECT_THAT(journal_, testing::Not(testing::Contains("b cut.abort")));
  EXPECT_THAT(journal_, testing::Not(testing::Contains("a cut.commit")));
  expect_everywhere(false);
  EXPECT_THAT(*catalogue_->unsettled_groups(), IsEmpty());
}

TEST_F(GroupCutTest, AnExpiredLeaseUndoesTheVolumesThatHaveAdvanced) {
  c_.failures["cut.commit"] = ErrorKind::timed_out;
  c_.gate_closed = false;
  const auto made = cut();
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().kind(), ErrorKind::timed_out);
  c_.gate_closed = false;  // its lease has run out
  expect_everywhere(false);
}

TEST_F(GroupCutTest, AVolumeThatMissedTheCommitHearsOfItWhenItIsOpened) {
  b_.failures["group.settle"] = ErrorKind::disconnected;
  ASSERT_TRUE(cut());
  EXPECT_TRUE(a_.checkpoints.contains("night"));
  EXPECT_EQ(b_.provisional.size(), 1);
  EXPECT_THAT((*catalogue_->unsettled_groups()).front().unsettled, ElementsAre("b"));

  open_catalogue();
  b_.failures.clear();
  EXPECT_THAT(*run_for_test(io_, cuts_->resolve()), ElementsAre("b"));
  ASSERT_TRUE(settle(b_, "b"));
  expect_everywhere(true);
  EXPECT_THAT(*catalogue_->unsettled_groups(), IsEmpty());
}

TEST_F(GroupCutTest, ADaemonThatDiedBeforeTheDecisionHasAborted) {
  // What it leaves: a prepared group, and volumes that have advanced.
  const std::string group = "11111111-2222-3333-4444-555555555555";
  ASSERT_TRUE(catalogue_->add_group(group, {"a", "b", "c"}));
  for (FakeVolume* volume : {&a_, &b_}) volume->provisional[group] = "night";

  open_catalogue();
  EXPECT_THAT(*run_for_test(io_, cuts_->resolve()), ElementsAre("a", "b", "c"));
  ASSERT_TRUE(settle(a_, "a"));
  ASSERT_TRUE(settle(b_, "b"));
  ASSERT_TRUE(run_for_test(io_, cuts_->mark_resolved("c")));
  expect_everywhere(false);
  EXPECT_THAT(*catalogue_->unsettled_groups(), IsEmpty());
  // Too late now, whoever tries.
  EXPECT_EQ(catalogue_->decide_group(group, GroupState::committed).error().kind(),
            ErrorKind::precondition);
}

TEST_F(GroupCutTest, ADaemonThatDiedAfterTheDecisionHasCommitted) {
  const std::string group = "11111111-2222-3333-4444-555555555555";
  ASSERT_TRUE(catalogue_->add_group(group, {"a", "b", "c"}));
  ASSERT_TRUE(catalogue_->decide_group(group, GroupState::committed));
  for (FakeVolume* volume : {&a_, &b_, &c_}) volume->provisional[group] = "night";

  open_catalogue();
  ASSERT_TRUE(run_for_test(io_, cuts_->resolve()));
  for (FakeVolume* volume : {&a_, &b_, &c_}) ASSERT_TRUE(settle(*volume, "x"));
  expect_everywhere(true);
}

TEST_F(GroupCutTest, AGroupThatNobodyKnowsIsAborted) {
  a_.provisional["99999999-2222-3333-4444-555555555555"] = "night";
  ASSERT_TRUE(settle(a_, "a"));
  expect_everywhere(false);
}

TEST_F(GroupCutTest, ACutInProgressIsLeftAloneByAVolumeThatIsOpenedMeanwhile) {
  // Volume b's keeper is opened again between its commit and the decision.
  std::optional<Result<void>> settled;
  c_.on_call = [&](const std::string& method) {
    if (method != "cut.commit") return;
    boost::asio::co_spawn(
        io_, cuts_->settle_volume(b_, "b"),
        [&](const std::exception_ptr&, Result<void> result) { settled = std::move(result); });
  };
  ASSERT_TRUE(cut());
  ASSERT_TRUE(settled.has_value());
  expect_everywhere(true);
}

}  // namespace
}  // namespace berth::control
