// A cut over several volumes at one instant (DESIGN §5, rule 6), and what becomes of one that was
// cut short.
//
//   1. record the group as prepared (durable)
//   2. cut.begin everywhere: every gate closes, under a lease
//   3. cut.commit everywhere: each advances and opens; refused where the lease has expired. Who
//      waits for no more than that is told when the last has opened
//   4. record the decision (durable): only now does the group's checkpoint exist
//   5. group.settle everywhere: what was provisional becomes real, or goes
//
// A group without a commit record is aborted: after a crash of the daemon, when a volume is opened
// that has provisional points, the record alone says what they are. On the control plane's thread.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include <boost/asio/thread_pool.hpp>
#include <nlohmann/json_fwd.hpp>

#include "base/result.h"
#include "control/async.h"
#include "control/catalogue.h"
#include "control/events.h"
#include "control/keeper_connection.h"

namespace berth::control {

struct CutMember {
  std::string volume;
  KeeperChannel* channel = nullptr;  // outlives the cut
};

struct CutWish {
  std::string checkpoint;              // "" for none
  std::string refpoint;                // "" for none
  std::string durability;              // durable, volatile
  std::function<void()> writes_go_on;  // called when all gates have opened again; may be empty
};

class GroupCuts {
 public:
  GroupCuts(Executor executor, boost::asio::thread_pool& workers, Catalogue& catalogue,
            EventLog& events);

  /// A Cut of the API. In all volumes or in none; the error of the first volume that could not. One
  /// volume alone needs no group.
  Async<Result<nlohmann::json>> cut(std::vector<CutMember> members, CutWish wish);

  /// For every volume that is opened: settles what an earlier daemon left provisional.
  Async<Result<void>> settle_volume(KeeperChannel& channel, std::string volume);

  /// When the daemon starts: decides what was not decided. The volumes that have to be opened to
  /// hear of it.
  Async<Result<std::vector<std::string>>> resolve();
  /// The volume is gone, or has been opened since: nothing of it is waiting.
  Async<Result<void>> mark_resolved(std::string volume);

 private:
  Async<Result<nlohmann::json>> cut_one(CutMember member, CutWish wish);
  Async<Result<nlohmann::json>> cut_many(std::vector<CutMember> members, CutWish wish,
                                         std::string group);
  Async<Result<void>> abort(std::string group, std::vector<CutMember> members, Error reason);
  Async<void> settle(std::string group, std::vector<CutMember> members, bool committed);
  Async<Result<void>> decide(std::string group, GroupState decision);
  Async<Result<void>> mark_settled(std::string group, std::string volume);

  boost::asio::thread_pool& workers_;
  Catalogue& catalogue_;
  EventLog& events_;
  AsyncMutex one_at_a_time_;           // two that share volumes would wait for each other's gates
  std::set<std::string> in_progress_;  // groups of ours that are not decided yet
};

}  // namespace berth::control
