// VolumeWorld: one seeded life story of a volume on a simulated machine. Workers read, write, zero,
// discard, flush, cut, release, convert, revert, resize and query side by side; at random points
// the process dies or the power fails, syncs fail, the disk fills up; after each the volume is
// opened again and everything that DESIGN §5 promises is checked against DiskModel. Between two
// lives the volume is moved or copied to another place, with deaths in the middle of that:
//
//   1  a block that differs from what it was at a reference point is in changes(since it); and
//      where the answer says `exact`, a block that nothing touched is not; after a move as before,
//      and never from a copy, of points that its original has made
//   2  a checkpoint reads the same bytes for as long as it exists
//   3  flushed data survives power loss, acknowledged data survives the process; the rest is old or
//   new,
//      sector by sector
//   4  (timing: see bench/)
//   5  a failed or cut-short operation leaves the volume serving
//
// The same seed gives the same story. run() gives the violation, or nothing.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include <fmt/format.h>

#include "async/gate.h"
#include "disk/closed_volume.h"
#include "disk/volume.h"
#include "disk_model.h"
#include "testing/sim_host.h"
#include "testing/sim_loop.h"
#include "testing/sim_random.h"

namespace berth::sim {

class VolumeWorld {
 public:
  /// `tell`: print what happens, a line each, to standard error.
  explicit VolumeWorld(std::uint64_t seed, bool tell = false);
  ~VolumeWorld();
  VolumeWorld(const VolumeWorld&) = delete;
  VolumeWorld& operator=(const VolumeWorld&) = delete;

  /// The first broken promise, in words; nothing if all were kept.
  std::optional<std::string> run();
  const SimProbes& probes() { return host_.probes(); }

 private:
  enum class Ending { process_death, power_loss, clean_close };
  enum class Existence { pending, certain, leaving };

  /// A checkpoint or a reference point as the model knows it.
  struct Point {
    std::map<std::uint64_t, Possible> content;  // by followed sector
    Tick cut_start = 0;
    Tick cut_end = never;
    disk::Durability durability = disk::Durability::durable;
    std::uint64_t size = 0;
    Existence existence = Existence::pending;
    bool may_be_lost = false;
    std::optional<Id128> nonce;
    bool of_original = false;  // this volume is a copy of the one that made it
  };
  struct Touch {
    Tick submitted = 0;
    Tick acknowledged = never;
  };
  struct Range {
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
  };

  // --- The machine and the process on it.
  Task<> live();
  Task<> work(int worker);
  Task<Result<void>> open_volume();
  disk::VolumeEnvironment environment();
  bool live_until_death();
  void die(bool power);
  void begin_process();
  void settle_after(Ending ending);

  // --- The volume goes to another place, while nobody has it open.
  void travel();
  bool arrive_or_die(disk::Arrival arrival);
  Task<> arrive(disk::Arrival arrival);
  void change_data_behind_its_back();
  Task<Result<void>> write_behind_its_back();

  // --- What workers do.
  Task<> act();
  Task<> do_write();
  Task<> do_read();
  Task<> do_zero();
  Task<> do_discard();
  Task<> do_flush();
  Task<> do_cut();
  Task<> do_group_cut();
  Task<> do_release();
  Task<> do_convert();
  Task<> do_delete_refpoint();
  Task<> do_read_checkpoint();
  Task<> do_changes();
  Task<> do_wrong_nonce();
  Task<> do_populate();
  // --- What is done alone.
  Task<> do_revert();
  Task<> do_resize();
  Task<> verify();
  Task<> verify_live(bool reopened);
  Task<> verify_points(bool reopened);
  Task<> verify_checkpoint(std::string name);
  Task<> verify_changes(std::string since, std::string until);
  Task<> verify_void(std::string since);
  void make_faults();

  // --- The model.
  Range pick_range(std::uint64_t granularity);
  void begin_change(Range range, Value value, bool certain, Tick* token);
  void end_change(Range range, Tick token, bool done);
  void snapshot(Point& point, Tick start, Tick end);
  void leave_undecided(Point& point, Tick start, Tick end);
  std::string pick_point(const std::map<std::string, Point>& points);
  void violation(std::string what);
  template <typename... Arguments>
  void tell(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
    if (tell_)
      fmt::print(stderr, "{:>6} {}\n", model_->now(),
                 fmt::format(format, std::forward<Arguments>(arguments)...));
  }
  bool explained(const Error& error);
  bool io_has_failed() { return faulty_ && host_.faults().hits() > hits_before_; }
  std::uint64_t block_of_sector(std::uint64_t sector) const {
    return sector * model_sector / block_size_;
  }

  std::uint64_t seed_;
  bool tell_;
  SimRandom random_;
  SimHost host_;
  std::unique_ptr<SimLoop> loop_;
  std::unique_ptr<Directory> directory_;
  std::unique_ptr<SharedMemoryStore> memory_;
  std::unique_ptr<disk::Volume> volume_;
  std::unique_ptr<Gate> life_;
  std::unique_ptr<Gate> workers_;
  std::optional<std::uint64_t> working_since_;  // step of the loop
  std::optional<std::uint64_t> dies_at_;        // likewise: in the middle of something rare
  bool ended_ = false;
  std::string place_ = "vol";  // the directory
  std::uint64_t places_ = 0;
  std::uint64_t processes_ = 0;
  std::optional<Result<disk::Settled>> arrival_;  // how the last one ended; nothing: it died
  Id128 id_;                                      // of the volume; nil before it is known

  std::uint32_t block_size_ = 0;
  std::uint64_t size_ = 0;
  bool backed_ = false;
  bool faulty_ = false;  // I/O errors may happen in this life
  std::uint64_t hits_before_ = 0;
  bool tight_ = false;            // the disk may be full in this life
  bool sync_had_failed_ = false;  // in the life that ended: what was not durable may be gone
  std::size_t actions_left_ = 0;
  bool power_was_lost_ = false;  // before the life that begins

  std::unique_ptr<DiskModel> model_;
  std::vector<std::uint64_t> active_blocks_;
  Tick flushed_ = 0;  // everything acknowledged before it is durable
  std::map<std::uint64_t, std::vector<Touch>>
      touches_;  // by block: changes of content, or of what it may be
  std::map<std::string, Point> checkpoints_;
  std::map<std::string, Point> refpoints_;
  std::map<std::string, std::string> converting_;  // checkpoint to reference point
  std::optional<std::string> reverting_;           // undecided
  std::map<std::uint64_t, Possible> before_revert_;
  int names_ = 0;
  std::optional<std::string> violation_;
};

/// The seeds from `first` on, `count` of them; stops at the first violation, with its seed in the
/// message.
struct SimulationResult {
  std::uint64_t runs = 0;
  std::optional<std::string> violation;
  SimProbes probes;
};
SimulationResult simulate_volumes(std::uint64_t first, std::uint64_t count, bool tell = false);

}  // namespace berth::sim
