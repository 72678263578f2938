#include "control/group_cut.h"

#include <algorithm>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/fault_point.h"
#include "base/ids.h"
#include "base/log.h"
#include "control/keeper_lists.h"
#include "control/spawn.h"
#include "machine/control_protocol.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;
using Answers = std::vector<Result<Json>>;

constexpr Milliseconds lease{5000};  // for so long, at most, do writes stand still
constexpr Milliseconds commit_timeout{30'000};

/// The first error, with the volume's name.
std::optional<Error> first_error(const std::vector<CutMember>& members, const Answers& answers) {
  for (std::size_t i = 0; i < members.size(); ++i) {
    if (!answers[i])
      return Error(answers[i].error()).with_context(fmt::format("volume '{}'", members[i].volume));
  }
  return std::nullopt;
}

Json wish_params(const CutWish& wish) {
  Json params = {{"durability", wish.durability}};
  if (!wish.checkpoint.empty()) params["checkpoint"] = wish.checkpoint;
  if (!wish.refpoint.empty()) params["refpoint"] = wish.refpoint;
  return params;
}

/// The same for calls of `members` volumes; `writes_go_on` is called when it is true of the last.
CallOptions telling(CallOptions options, std::size_t members, std::function<void()> writes_go_on) {
  if (!writes_go_on) return options;
  options.progress = [left = std::make_shared<std::size_t>(members),
                      tell = std::move(writes_go_on)](const machine::ControlProgress& progress) {
    if (progress.phase == machine::phase_writes_go_on && --*left == 0) tell();
  };
  return options;
}

/// Calls every member at once: `params[i]` for the i-th; a null is not called.
Async<Answers> call_all(std::vector<CutMember> members, std::string method,
                        std::vector<Json> params, CallOptions options) {
  std::vector<Async<Result<Json>>> calls;
  std::vector<std::size_t> called;
  for (std::size_t i = 0; i < members.size(); ++i) {
    if (params[i].is_null()) continue;
    calls.push_back(members[i].channel->call(method, params[i], options));
    called.push_back(i);
  }
  Answers some = co_await gather(std::move(calls));
  Answers all(members.size());
  for (std::size_t i = 0; i < called.size(); ++i) all[called[i]] = std::move(some[i]);
  co_return all;
}

}  // namespace

GroupCuts::GroupCuts(Executor executor, boost::asio::thread_pool& workers, Catalogue& catalogue,
                     EventLog& events)
    : workers_(workers),
      catalogue_(catalogue),
      events_(events),
      one_at_a_time_(std::move(executor)) {}

Async<Result<Json>> GroupCuts::cut(std::vector<CutMember> members, CutWish wish) {
  if (members.size() == 1) co_return co_await cut_one(members.front(), wish);
  const auto lock = co_await one_at_a_time_.lock();
  SystemRandom random;
  const std::string group = random.id().to_string();
  in_progress_.insert(group);
  auto result = co_await cut_many(members, wish, group);
  in_progress_.erase(group);
  co_return result;
}

Async<Result<Json>> GroupCuts::cut_one(CutMember member, CutWish wish) {
  Json params = {{"durability", wish.durability}};
  const bool with_checkpoint = !wish.checkpoint.empty();
  params["name"] = with_checkpoint ? wish.checkpoint : wish.refpoint;
  if (with_checkpoint && !wish.refpoint.empty()) params["refpoint"] = wish.refpoint;
  const Json outcome = CO_TRY(
      co_await member.channel->call(with_checkpoint ? "checkpoint.create" : "refpoint.create",
                                    std::move(params), telling({}, 1, wish.writes_go_on)));
  Json part = CO_TRY(shown_cut_part(member.volume, outcome));
  co_return Json{{"group", nullptr}, {"volumes", Json::array({std::move(part)})}};
}

Async<Result<Json>> GroupCuts::cut_many(std::vector<CutMember> members, CutWish wish,
                                        std::string group) {
  std::vector<std::string> volumes;
  for (const CutMember& member : members) volumes.push_back(member.volume);
  Catalogue* catalogue = &catalogue_;
  CO_TRY(co_await on_worker(workers_, [=] { return catalogue->add_group(group, volumes); }));
  fault_point("cutting.prepared");

  Json begin = wish_params(wish);
  begin["group"] = group;
  begin["lease_ms"] = lease.count();
  const Answers begun = co_await call_all(
      members, "cut.begin", std::vector<Json>(members.size(), begin), {.timeout = lease});
  std::vector<Json> tickets(members.size());
  for (std::size_t i = 0; i < members.size(); ++i) {
    if (begun[i] && begun[i]->contains("ticket")) tickets[i] = {{"ticket", (*begun[i])["ticket"]}};
  }
  if (auto error = first_error(members, begun)) {
    (void)co_await call_all(members, "cut.abort", tickets, {.timeout = commit_timeout});
    CO_TRY(co_await abort(group, members, std::move(*error)));
  }

  fault_point("cutting.begun");
  const Answers outcomes =
      co_await call_all(members, "cut.commit", tickets,
                        telling({.timeout = commit_timeout}, members.size(), wish.writes_go_on));
  fault_point("cutting.committed");
  if (auto error = first_error(members, outcomes))
    CO_TRY(co_await abort(group, members, std::move(*error)));
  if (auto decided = co_await decide(group, GroupState::committed); !decided) {
    CO_TRY(co_await abort(group, members, std::move(decided).error()));
  }
  fault_point("cutting.decided");
  co_await settle(group, members, true);
  fault_point("cutting.settled");

  Json parts = Json::array();
  for (std::size_t i = 0; i < members.size(); ++i) {
    parts.push_back(CO_TRY(shown_cut_part(members[i].volume, *outcomes[i])));
  }
  co_return Json{{"group", group}, {"volumes", std::move(parts)}};
}

/// Always ends in an error: the reason.
Async<Result<void>> GroupCuts::abort(std::string group, std::vector<CutMember> members,
                                     Error reason) {
  if (const auto decided = co_await decide(group, GroupState::aborted); decided) {
    co_await settle(group, std::move(members), false);
  } else {
    // Undecided, as far as we know: what is provisional stays so until a later daemon can read the
    // record.
    log_warning("cut {}: {}", group, decided.error().message());
  }
  co_return failure(std::move(reason));
}

Async<void> GroupCuts::settle(std::string group, std::vector<CutMember> members, bool committed) {
  const std::vector<Json> params(members.size(), Json{{"group", group}, {"committed", committed}});
  const Answers settled =
      co_await call_all(members, "group.settle", params, {.timeout = commit_timeout});
  for (std::size_t i = 0; i < members.size(); ++i) {
    if (settled[i]) {
      (void)co_await mark_settled(group, members[i].volume);
    } else {
      // It hears of it when it is opened the next time.
      events_.publish("cut_unsettled", {.volume = members[i].volume, .job = {}},
                      settled[i].error().message());
    }
  }
}

Async<Result<void>> GroupCuts::decide(std::string group, GroupState decision) {
  Catalogue* catalogue = &catalogue_;
  auto decided =
      co_await on_worker(workers_, [=] { return catalogue->decide_group(group, decision); });
  // From here on the record answers whoever asks, a keeper that is just being opened among them.
  if (decided) in_progress_.erase(group);
  co_return decided;
}

Async<Result<void>> GroupCuts::mark_settled(std::string group, std::string volume) {
  Catalogue* catalogue = &catalogue_;
  co_return co_await on_worker(workers_, [=] { return catalogue->mark_settled(group, volume); });
}

Async<Result<void>> GroupCuts::settle_volume(KeeperChannel& channel, std::string volume) {
  std::set<std::string> groups;
  for (const auto& [method, member] :
       {std::pair("checkpoint.list", "checkpoints"), std::pair("refpoint.list", "refpoints")}) {
    const Json points = CO_TRY(co_await list_all(channel, method, member));
    for (const Json& point : points) {
      if (point.value("provisional", false)) groups.insert(point.value("group", std::string()));
    }
  }
  Catalogue* catalogue = &catalogue_;
  for (const std::string& group : groups) {
    if (in_progress_.contains(group)) continue;
    auto state =
        CO_TRY(co_await on_worker(workers_, [=] { return catalogue->decision_of(group); }));
    if (state == GroupState::prepared) {
      CO_TRY(co_await decide(group, GroupState::aborted));
      state = GroupState::aborted;
    }
    const bool committed = state == GroupState::committed;
    CO_TRY(co_await channel.call("group.settle", {{"group", group}, {"committed", committed}}, {}));
    (void)co_await mark_settled(group, volume);
    events_.publish("cut_settled", {.volume = volume, .job = {}},
                    fmt::format("the cut {} was {}", group, committed ? "committed" : "aborted"));
  }
  co_return Result<void>();
}

Async<Result<std::vector<std::string>>> GroupCuts::resolve() {
  Catalogue* catalogue = &catalogue_;
  const auto groups =
      CO_TRY(co_await on_worker(workers_, [=] { return catalogue->unsettled_groups(); }));
  std::set<std::string> volumes;
  for (const GroupRecord& group : groups) {
    if (group.state == GroupState::prepared) CO_TRY(co_await decide(group.id, GroupState::aborted));
    volumes.insert(group.unsettled.begin(), group.unsettled.end());
  }
  co_return std::vector<std::string>(volumes.begin(), volumes.end());
}

Async<Result<void>> GroupCuts::mark_resolved(std::string volume) {
  Catalogue* catalogue = &catalogue_;
  const auto groups =
      CO_TRY(co_await on_worker(workers_, [=] { return catalogue->unsettled_groups(); }));
  for (const GroupRecord& group : groups) {
    if (in_progress_.contains(group.id) || group.state == GroupState::prepared) continue;
    if (std::ranges::find(group.unsettled, volume) != group.unsettled.end()) {
      CO_TRY(co_await mark_settled(group.id, volume));
    }
  }
  co_return Result<void>();
}

}  // namespace berth::control
