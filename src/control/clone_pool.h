// Clones that wait for a name: mapped, connected, with an identity, and standing still, so that
// whoever asks for one has it at once. Each template says how many; what is taken is made again.
//
// On the control plane's thread. They are given up where a guest needs their memory, and when the
// daemon ends.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "control/async.h"
#include "control/containers.h"
#include "control/events.h"
#include "control/templates.h"

namespace berth::control {

class ClonePool final : public MachineNeighbours {
 public:
  ClonePool(Executor executor, Containers& containers, Templates& templates, EventLog& events);

  /// Ends what a dead daemon has left, and fills the pool. After Templates::take_over().
  Async<void> take_over();
  /// Has as many of a template as it wants, soon.
  void fill(const std::string& name);
  /// One of what the template is now; nothing where none waits.
  std::optional<Containers::Waiting> take(const container::TemplateRecord& of);
  /// How many wait.
  std::size_t size(const std::string& name) const;
  /// Gives up those of a template.
  Async<void> empty(std::string name);

  /// While one of these is there, clones are being made, and the pool waits with making its own.
  class Pause {
   public:
    explicit Pause(ClonePool& pool) : pool_(&pool) { ++pool.pauses_; }
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;
    ~Pause() {
      if (--pool_->pauses_ == 0) pool_->changed_.notify();
    }

   private:
    ClonePool* pool_;
  };

  /// The daemon ends: nothing waits any more.
  Async<void> quit();

  Async<bool> yield_memory() override;

 private:
  struct Clone {
    Containers::Waiting waiting;
    Id128 of;                   // what was made of the template
    std::shared_ptr<void> pin;  // that it stays
  };
  bool is_good(const Clone& clone, const Id128& current) const;
  Async<void> keep_full(std::string name);
  Async<bool> add_one(std::string name);
  Async<void> drop_stale(std::string name, Id128 current);

  Executor executor_;
  Containers& containers_;
  Templates& templates_;
  EventLog& events_;
  std::map<std::string, std::vector<Clone>> clones_;  // by template
  std::set<std::string> filling_;
  std::set<std::string> wanted_;  // to be looked at again
  Wakeup changed_;
  std::size_t pauses_ = 0;
  bool quitting_ = false;
};

}  // namespace berth::control
