// Engine: the one implementation of Volume. volume.h has the contract; the rules that the comments
// cite are DESIGN §5's. Split by what it does:
//   engine_open.cc    create, open, recovery after either death, close
//   engine_io.cc      reads; writes: the fast path, and the slow path once per block and epoch
//   engine_zero.cc    write-zeroes, discard, allocation, populate
//   engine_flush.cc   flush, cooling
//   engine_cut.cc     the gate, cuts, checkpoints and reference points come and go
//   engine_read.cc    reading a checkpoint; changes
//   engine_resize.cc  resize and revert, and rolling them forward
#pragma once

#include <map>
#include <memory>
#include <optional>

#include "async/event.h"
#include "async/gate.h"
#include "disk/block_locks.h"
#include "disk/hold_layer.h"
#include "disk/intent_log.h"
#include "disk/live_map.h"
#include "disk/map_file.h"
#include "disk/volume.h"

namespace berth::disk {

class Engine final : public Volume {
 public:
  static Task<Result<std::unique_ptr<Engine>>> open(VolumeEnvironment environment,
                                                    OpenOptions options);
  ~Engine() override;

  Task<Result<void>> close() override;
  void abandon() override;

  Task<Result<void>> read(std::uint64_t offset, MutableBytes into) override;
  Task<Result<void>> write(std::uint64_t offset, Bytes from) override;
  Task<Result<void>> flush() override;
  Task<Result<void>> discard(std::uint64_t offset, std::uint64_t length) override;
  Task<Result<void>> zero(std::uint64_t offset, std::uint64_t length, bool fast_only) override;
  Task<Result<std::vector<AllocationExtent>>> allocation(std::uint64_t offset, std::uint64_t length,
                                                         std::size_t extents_max) override;

  Task<Result<CutTicket>> begin_cut(CutRequest request, Duration lease) override;
  Task<Result<CutOutcome>> commit_cut(CutTicket ticket,
                                      std::function<void()> writes_go_on) override;
  void abort_cut(CutTicket ticket) override;
  Task<Result<void>> settle_group(Id128 group, bool committed) override;

  std::vector<CheckpointInfo> checkpoints() const override;
  Result<std::unique_ptr<CheckpointReader>> read_checkpoint(const std::string& name) override;
  Task<Result<void>> release_checkpoint(std::string name) override;
  Task<Result<RefpointInfo>> convert_checkpoint(std::string name, std::string refpoint) override;
  Task<Result<void>> revert(std::string checkpoint) override;
  std::vector<RefpointInfo> refpoints() const override;
  Task<Result<void>> delete_refpoint(std::string name) override;
  Task<Result<ChangesPage>> changes(ChangesRequest request) override;

  Task<Result<void>> resize(std::uint64_t size) override;
  Task<Result<std::uint64_t>> populate(std::uint64_t bytes_max) override;
  VolumeInfo info() const override;

 private:
  friend class EngineCheckpointReader;
  using LayerList = std::vector<std::shared_ptr<HoldLayer>>;

  /// A cut between its two phases: the gate is closed on its behalf.
  struct OpenCut {
    std::uint64_t number = 0;
    CutRequest request;
    std::shared_ptr<HoldLayer> layer;  // null where no checkpoint is made
    Instant gate_closed_at{};
    bool expired = false;
  };

  Engine(VolumeEnvironment environment, OpenOptions options, std::unique_ptr<MapFile> map);

  // --- engine_open.cc
  Task<Result<void>> open_parts();
  Task<Result<void>> open_data();
  Task<Result<void>> open_backing();
  bool needs_backing() const;
  Task<Result<void>> open_live_map();
  Task<Result<bool>> take_over(const IntentRing& ring);
  Task<Result<std::vector<std::uint64_t>>> load_map(Epoch epoch, const Id128& session);
  Result<void> mend_states(std::span<const std::uint64_t> doubtful, std::uint64_t versions_missing);
  void give_recovered_epochs(const IntentRecord& intents);
  Task<Result<void>> open_layers();
  Task<Result<void>> roll_forward();
  LiveMap::Key live_key(const Id128& session) const;

  // --- Geometry.
  std::uint64_t size() const { return map_->state().size; }
  std::uint64_t block_count() const { return divide_up(size(), block_size_); }
  BlockIndex block_of(std::uint64_t offset) const { return offset >> block_shift_; }
  std::uint64_t block_offset(BlockIndex block) const { return block << block_shift_; }
  /// Bytes of the block that lie within the volume.
  std::uint64_t block_length(BlockIndex block) const {
    const std::uint64_t start = block_offset(block);
    return start + block_size_ <= size() ? block_size_ : size() - start;
  }
  std::uint64_t region_of(BlockIndex block) const { return block_offset(block) / region_size; }
  bool is_aligned(std::uint64_t offset, std::uint64_t length) const {
    return ((offset | length) & (alignment_ - 1)) == 0;
  }
  bool is_aligned(const void* memory) const {
    return (reinterpret_cast<std::uintptr_t>(memory) & (alignment_ - 1)) == 0;
  }
  Result<void> check_range(std::uint64_t offset, std::uint64_t length) const;
  /// Where there is no backing, a block that was never written is the data file's.
  BlockState state_of(MapWord word) const {
    return word.state() == BlockState::absent && !has_backing_ ? BlockState::present : word.state();
  }
  MapWord current(BlockState state) const { return MapWord::of(live_->epoch(), state); }

  /// Counts a request of somebody outside; a resize or a revert waits until none is left, and keeps
  /// new ones out: `co_await admitted(); const Request request(*this);`
  class Request {
   public:
    explicit Request(Engine& engine) : engine_(engine) { ++engine_.requests_; }
    Request(const Request&) = delete;
    Request& operator=(const Request&) = delete;
    ~Request() {
      if (--engine_.requests_ == 0 && engine_.requests_ended_.has_waiters())
        engine_.requests_ended_.notify_all();
    }

   private:
    Engine& engine_;
  };
  Task<> admitted();
  Task<> shut_others_out();

  // --- engine_io.cc
  Task<> pass_gate();
  Task<Result<void>> write_live(std::uint64_t offset, Bytes from);
  bool all_current(BlockIndex first, BlockIndex last) const;
  Task<Result<void>> write_slow(std::uint64_t offset, Bytes from);
  Task<Result<bool>> write_run(std::uint64_t offset, Bytes from);
  Task<Result<void>> write_block(BlockIndex block, std::uint64_t offset, Bytes from);
  Task<Result<void>> write_new_block(BlockIndex block, Bytes from);
  Task<Result<void>> write_part_of_sector(std::uint64_t offset, Bytes from);
  Task<Result<void>> hold_block(BlockIndex block);
  Task<Result<void>> fill_block(BlockIndex block);
  bool needs_hold(BlockIndex block, MapWord word) const;
  Task<Result<void>> read_data(std::uint64_t offset, MutableBytes into);
  Task<Result<void>> read_live(std::uint64_t offset, MutableBytes into);
  Task<Result<void>> read_backing(std::uint64_t offset, MutableBytes into);
  void begin_mutation() { ++mutations_; }
  void end_mutation() {
    if (--mutations_ == 0 && drained_.has_waiters()) drained_.notify_all();
  }
  /// Runs them side by side, a bounded number at a time; the first error once all have ended.
  Task<Result<void>> run_all(std::vector<Task<Result<void>>> tasks);

  // --- engine_zero.cc
  Task<Result<void>> zero_range(std::uint64_t offset, std::uint64_t length, bool fast_only);
  Task<Result<void>> zero_blocks(BlockIndex first, BlockIndex last, bool fast_only);
  Task<Result<bool>> zero_run(BlockIndex first, BlockIndex last);
  Task<Result<void>> zero_block(BlockIndex block, bool fast_only);
  Task<Result<void>> discard_blocks(BlockIndex first, BlockIndex last);
  Task<> punch(BlockIndex first, BlockIndex last);

  // --- engine_flush.cc
  Task<Result<void>> flush_shared();
  Task<Result<void>> flush_map(std::uint8_t dirt);
  Task<Result<void>> flush_batch(std::span<const std::uint64_t> batch);
  Task<Result<void>> sync_data();
  void request_cooling();
  Task<> cool();

  // --- engine_cut.cc
  Task<> close_gate();
  void open_gate();
  Result<void> may_change_points() const;
  Task<Result<void>> check_cut(const CutRequest& request);
  Task<Result<std::shared_ptr<HoldLayer>>> prepare_layer();
  Task<> withdraw_layer(LayerId id);
  Task<> watch_lease(std::uint64_t number, Duration lease);
  Task<Result<CutOutcome>> record_cut(OpenCut cut, Epoch epoch, Duration gate_closed);
  bool layer_must_be_durable(const HoldLayer& layer) const;
  void refresh_layers();
  Task<> remove_layer_file(LayerId id);
  Task<Result<void>> give_up_volatile_holds();
  CheckpointInfo describe(const Checkpoint& checkpoint) const;
  RefpointInfo describe(const Refpoint& refpoint) const;

  // --- engine_read.cc
  struct CheckpointView {
    Epoch epoch = 0;
    std::uint64_t size = 0;  // bytes
  };
  /// The first entry in the layers of the checkpoint and after it, and whose it is.
  HeldBlock find_held(Epoch checkpoint, BlockIndex block, std::shared_ptr<HoldLayer>* layer) const;
  Result<void> check_as_of(CheckpointView view, BlockIndex block, MapWord word) const;
  Task<Result<void>> read_as_of(CheckpointView view, std::uint64_t offset, MutableBytes into);
  Task<Result<void>> read_held(HoldLayer& layer, HeldBlock held, BlockIndex block,
                               std::uint64_t within, MutableBytes into);
  Result<Epoch> epoch_for_changes(const ChangesRequest& request, bool* exact) const;
  void collect_changes(std::uint64_t page, Epoch since, std::optional<CheckpointView> until,
                       std::uint64_t start, std::uint64_t end, std::size_t extents_max,
                       ChangesPage& into) const;

  // --- engine_resize.cc
  Task<Result<void>> finish_resize(ResizeEvent event);
  Task<Result<void>> resize_behind_gate(std::uint64_t old_size, std::uint64_t new_size);
  Result<LiveMap> resized_live_map(const ResizeEvent& event);
  Result<void> remove_successor();
  Result<void> remove_live_map(std::uint64_t page_count);
  Task<Result<void>> finish_revert(RevertEvent event);
  Task<Result<void>> revert_blocks(CheckpointView view);

  void report(VolumeEvent::Kind kind, std::string message) const;

  VolumeEnvironment environment_;
  OpenOptions options_;
  Loop& loop_;
  std::unique_ptr<MapFile> map_;
  std::unique_ptr<Directory> holds_;
  std::unique_ptr<File> data_;
  std::unique_ptr<File> backing_;
  std::uint64_t backing_size_ = 0;  // bytes of it that count
  bool has_backing_ = false;
  std::optional<Error> backing_missing_;  // why backing_ is not there
  std::uint32_t block_size_;
  unsigned block_shift_;
  std::uint64_t alignment_ = 1;  // of offsets, lengths and memory in the data file

  std::optional<LiveMap> live_;
  Gate tasks_;
  IntentLog intents_;
  BlockLocks locks_;

  // The gate that cuts close (rule 5), and what is submitted behind it.
  bool gate_closed_ = false;
  Event gate_opened_;
  std::uint64_t mutations_ = 0;
  Event drained_;
  bool exclusive_ = false;  // a resize or a revert is under way: requests wait
  Event exclusive_ended_;
  std::uint64_t requests_ = 0;
  Event requests_ended_;

  LayerList layers_;             // by epoch, ascending
  Epoch newest_checkpoint_ = 0;  // of a live one; 0: no hold is needed
  std::optional<Checkpoint>
      cut_in_record_;  // its layer holds already, its record is not durable yet
  std::optional<OpenCut> open_cut_;
  std::uint64_t cut_numbers_ = 0;
  LayerId next_layer_ = 1;
  AsyncMutex giving_up_;   // volatile holds, on a full disk
  bool cut_busy_ = false;  // from begin_cut until the record is durable
  std::map<std::string, int> readers_;

  // Flushes: one at a time; whoever comes meanwhile shares the next.
  AsyncMutex map_flush_;
  std::uint64_t flushes_begun_ = 0;
  std::uint64_t flushes_ended_ = 0;
  bool flush_running_ = false;
  Event flushed_;
  std::optional<Error> flush_error_;   // of the last flush that ended
  std::optional<Error> sync_failure_;  // for good
  // A resize or revert was decided and could not be finished: only the next open can. Until then
  // nothing is answered, because what would be written now the roll-forward would write over.
  std::optional<Error> unfinished_;
  bool cooling_ = false;
  BlockIndex populate_cursor_ = 0;
};

}  // namespace berth::disk
