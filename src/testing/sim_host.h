// SimHost: a simulated machine: its disk with files and directories, and its shared memory. It
// outlives the processes (SimLoops) that run on it, and every File, Directory and store that it
// hands out.
//
// Three views of a file, and two kinds of death:
//   in flight   submitted, not completed. Writes may become visible early, in pieces of sectors.
//   seen        what reads give. Survives the death of a process.
//   durable     what a sync made so. All that surely survives power loss.
//
// Process death (SimLoop::kill): operations in flight are dropped, or land, whole or in part, at
// any later time; but never after the next open() with OpenOptions::lock of a file whose lock they
// hold: that open lets them land or not, and then succeeds. Nothing waits for those of an unlocked
// file.
//
// Power loss: of what is not durable, any version of every 512-byte sector and of every size may be
// there; of the names that Directory::sync has not made durable, any subset that respects the order
// of changes of one name. Modification times may go back, but for File::sync_all. Shared memory is
// gone.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "async/file.h"
#include "async/memory.h"
#include "base/aligned_buffer.h"
#include "testing/fault_plan.h"
#include "testing/sim_node.h"
#include "testing/sim_probes.h"

namespace berth {

class SimLoop;
class SimScheduler;
struct SimOperation;

enum class SimDeath : std::uint8_t { process, power };

struct SimHostOptions {
  bool lock_lingers = false;  // open() of a dead process's locked file may say in_use for a while
  bool lazy_modified_time = true;  // a sync does not always keep the modification time
  bool in_pieces = true;           // reads and writes may happen sector by sector
  Duration latency{};              // about this long for every operation; 0: chosen by seed
};

class SimHost {
 public:
  explicit SimHost(std::uint64_t seed, SimHostOptions options = {});
  SimHost(const SimHost&) = delete;
  SimHost& operator=(const SimHost&) = delete;
  ~SimHost();

  /// The directory of that path ("vol", "a/b"), made durably if it is not there. For `loop`'s
  /// process.
  Result<std::unique_ptr<Directory>> open_directory(SimLoop& loop, const std::string& path);
  std::unique_ptr<SharedMemoryStore> shared_memory();

  /// Kills every process that is left (their coroutines are gone by now), then the machine.
  void power_loss();
  /// What `cp -a` does: the files of the directory "from" in a new one, with their times of
  /// modification, and nothing of it durable but the name "to". For tests, past all processes.
  Result<void> copy_directory(const std::string& from, const std::string& to);
  /// What dead processes left in flight lands now, or never.
  void settle();
  /// Another host, as this one would be after a death at this very moment. This one goes on.
  std::unique_ptr<SimHost> clone_after(SimDeath death, std::uint64_t seed) const;
  /// Called before every blocking call of a process, with what it does and to which path: a place
  /// between two calls that no step of the loop separates. For clone_after(), not for kill().
  void set_blocking_hook(std::function<void(std::string_view what, const std::string& path)> hook) {
    blocking_hook_ = std::move(hook);
  }

  FaultPlan& faults() { return faults_; }
  SimProbes& probes() { return probes_; }
  /// Space, in bytes of 4 KiB pages in use: writes that need more fail with ENOSPC.
  void set_space_max(std::uint64_t bytes) { pages_max_ = bytes / sim_page_size; }
  void set_space_max(const std::string& path, std::uint64_t bytes) {
    file_pages_max_[path] = bytes / sim_page_size;
  }
  std::uint64_t space_used() const { return disk_.pages_used * sim_page_size; }
  /// A file system that has gone read-only: EROFS for all that would change it.
  void set_read_only(bool read_only) { read_only_ = read_only; }

  // For tests, past all processes. not_found where the path leads to no file.
  Result<std::vector<std::byte>> peek(const std::string& path) const;
  Result<std::vector<std::byte>> peek_durable(const std::string& path) const;
  Result<void> corrupt(const std::string& path, std::uint64_t offset, std::size_t length);

  std::size_t operations_in_flight() const { return in_flight_.size(); }
  const std::string& boot_id() const { return boot_id_; }
  /// Of the loop that was attached last.
  Instant now() const;
  std::string describe() const;

 private:
  friend class SimLoop;
  friend class SimFile;
  friend class SimDirectory;
  friend class SimSharedMemoryStore;
  friend struct SimOperation;
  friend struct SimDescription;

  // For SimLoop.
  void attach(SimLoop& loop);
  void detach(SimLoop& loop);
  void process_died(const SimLoop& loop);

  // For files and directories: blocking_call() gives an errno value, or 0.
  int blocking_call(std::uint32_t kind, std::string_view what, const std::string& path,
                    bool changes);
  void submit(const std::shared_ptr<SimDescription>& description, FileRequest& request);
  bool take_lock(const std::shared_ptr<SimDescription>& description);
  void release_lock(const SimDescription& description);
  std::int64_t file_time() const;
  std::shared_ptr<SimNode> make_node(bool directory) {
    return SimNode::make(disk_, inodes_, directory, random_);
  }

  // Operations (sim_operation.cc).
  SimOperation& acquire(std::shared_ptr<SimDescription> description);
  void release(SimOperation& operation);
  int refusal(const SimDescription& description, const FileRequest& request) const;
  void prepare(SimOperation& operation);
  void schedule(SimOperation& operation, Duration after);
  void fire(SimOperation& operation);
  void finish(SimOperation& operation);
  std::int64_t perform(SimOperation& operation);
  std::int64_t perform_read(SimOperation& operation);
  void perform_clear(SimOperation& operation);
  void write_zeros(SimOperation& operation);
  void perform_sync(SimOperation& operation);
  void read_piece(SimOperation& operation, bool everything);
  void write_piece(SimOperation& operation, bool everything);
  void refresh_page(SimOperation& operation, std::size_t index);
  bool has_space_for(const SimOperation& operation, std::uint64_t page);
  void orphan(SimOperation& operation);
  void adopt(const SimOperation& original, const std::shared_ptr<SimDescription>& description);
  Duration latency(FileRequest::Kind kind);

  std::shared_ptr<SimNode> find_path(const std::string& path) const;
  std::shared_ptr<SimNode> copy_node(const SimNode& node);
  void power_loss_of_disk();
  void count_fates(const SimFates& fates);

  SimRandom random_;
  SimHostOptions options_;
  FaultPlan faults_;
  SimProbes probes_;
  std::function<void(std::string_view, const std::string&)> blocking_hook_;
  std::string boot_id_;
  std::int64_t file_time_granularity_ns_ = 1;
  Duration read_latency_{};
  Duration write_latency_{};
  Duration sync_latency_{};
  std::uint64_t pages_max_ = UINT64_MAX;
  std::map<std::string, std::uint64_t> file_pages_max_;
  bool read_only_ = false;

  SimDisk disk_;
  SimInodes inodes_;
  std::shared_ptr<SimNode> root_;
  std::map<std::string, std::shared_ptr<AlignedBuffer>> shared_memory_;
  std::vector<SimDescription*> descriptions_;  // open files of all processes

  Instant last_now_{};
  std::vector<SimLoop*> loops_;
  std::uint64_t operation_count_ = 0;
  std::vector<std::unique_ptr<SimOperation>> operations_;  // all that were ever needed at once
  std::vector<SimOperation*> free_operations_;
  std::vector<SimOperation*> in_flight_;
};

}  // namespace berth
