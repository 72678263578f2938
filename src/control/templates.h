// The templates of this host: made, made again when what they were made with has changed, handed
// out to clones, removed.
//
// On the control plane's thread. A template is made of a container of its own, called
// template-NAME, which goes with that.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <boost/asio/thread_pool.hpp>

#include "base/result.h"
#include "container/host_stamp.h"
#include "container/image_store.h"
#include "container/kernel_store.h"
#include "container/template_store.h"
#include "control/async.h"
#include "control/containers.h"
#include "control/events.h"
#include "control/jobs.h"

namespace berth::control {

class Templates final : public MachineNeighbours {
 public:
  struct Places {
    std::string state_dir;
    std::string run_dir;
    std::string memory_dir;
  };
  Templates(Executor executor, boost::asio::thread_pool& workers, Places places,
            Containers& containers, const container::ImageStore& images,
            const container::KernelStore& kernels, EventLog& events);
  ~Templates() override;

  /// Removes what a dead daemon has left of templates that were being made. After
  /// Containers::take_over().
  Async<void> take_over();

  Async<std::vector<container::TemplateRecord>> list();
  Async<Result<container::TemplateRecord>> find(std::string name);
  /// Makes one: boots it, waits until it is ready, warms it, and holds it. already_exists.
  Async<Result<container::TemplateRecord>> create(container::TemplateRecipe recipe,
                                                  std::shared_ptr<JobProgress> job);
  /// Of a container that runs, and runs on: it stands for an instant. Such a template cannot be
  /// made again.
  Async<Result<container::TemplateRecord>> create_from(container::TemplateRecipe recipe,
                                                       std::shared_ptr<JobProgress> job);
  /// `in_use` while there are clones of it.
  Async<Result<void>> remove(std::string name);

  /// A template to map, for as long as this lives.
  struct Use {
    container::TemplateRecord record;
    std::string memory;  // paths
    std::string devices;
    std::shared_ptr<void> pin;
  };
  /// Made again first where it does not fit to what this host has now, and loaded where its memory
  /// is gone. `precondition` where it can neither be used nor made again.
  Async<Result<Use>> use(std::string name);
  /// That of its makings whose memory object has this path, whatever the template is now: for a
  /// clone that was hibernated.
  Async<Result<Use>> use_making(std::string name, std::string memory);
  /// What a clone of it starts with.
  Containers::Start start_of(const Use& use) const;
  /// What its memory's checksum is now.
  Async<Result<std::string>> checksum(std::string name);

  /// The template that has the image; "" for none.
  Async<std::string> user_of_image(std::string digest);
  Async<std::vector<machine::MachineMemory>> running_memory() override;

 private:
  struct Held;  // by name: what is locked while one is made, loaded, removed

  Async<Result<void>> check_free(std::string name);
  Async<Result<void>> check_started_alike(container::TemplateRecord record);
  AsyncMutex& mutex_of(const std::string& name);
  Async<Result<container::TemplateStamp>> stamp_for(container::TemplateRecipe recipe);
  Async<Result<container::TemplateRecord>> build(container::TemplateRecord record,
                                                 std::shared_ptr<JobProgress> job);
  Async<Result<container::TemplateRecord>> boot_and_hold(container::TemplateRecord record,
                                                         std::string builder,
                                                         std::shared_ptr<JobProgress> job);
  Async<Result<void>> make_ready(container::TemplateRecipe recipe, std::string builder,
                                 std::shared_ptr<JobProgress> job);
  Async<Error> end_of(std::string builder);
  Async<std::string> last_words(std::string builder);
  Async<void> discard(std::string builder);
  Async<std::set<Id128>> ids_in_use();
  Async<void> collect(std::string name);
  Async<Result<Use>> pin(container::TemplateRecord record);

  Executor executor_;
  boost::asio::thread_pool& workers_;
  const Places places_;
  Containers& containers_;
  const container::ImageStore& images_;
  const container::KernelStore& kernels_;
  EventLog& events_;
  container::TemplateStore store_;
  container::HostStamp host_;
  std::map<std::string, std::unique_ptr<AsyncMutex>> mutexes_;
  std::map<Id128, std::weak_ptr<void>> pins_;
};

}  // namespace berth::control
