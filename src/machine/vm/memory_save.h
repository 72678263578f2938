// A running machine's memory and device state, saved to files (DESIGN §6, rule 1): rounds while it
// runs, then a short stop for the last of them and for the devices.
//
//   begin()   copies rounds, and stops the virtual CPUs
//   …         whoever asked cuts the disks: this is the instant that everything is of. Meanwhile
//             the last round and the device state are taken
//   finish()  the machine runs on; what was taken is written out and made durable
//
// The machine runs on whatever goes wrong, and then nothing of the save is left. One at a time. On
// the machine's loop.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "async/event.h"
#include "async/gate.h"
#include "machine/vm/device_state.h"
#include "machine/vm/saved_guest.h"
#include "memory/dirty_scan.h"
#include "memory/memory_image.h"

namespace berth::machine {

struct MemorySaveFigures {
  unsigned rounds = 0;
  std::uint64_t bytes = 0;             // copied in all rounds
  std::uint64_t last_round_bytes = 0;  // while the machine stood still
  std::uint64_t device_bytes = 0;
  Duration stopped{};   // how long the virtual CPUs stood; none if the machine was suspended
  Duration stopping{};  // how long `stop` took; its virtual CPUs stand before it ends
  Duration scanning{};  // meanwhile
  Duration copying{};
  Duration saving_devices{};
};

class MemorySave {
 public:
  MemorySave(UringLoop& loop, SavedGuest& machine);
  ~MemorySave();

  /// Into `directory`/memory and `directory`/devices, which must not exist. Returns when the
  /// machine stands still. `report`: bytes done, in all.
  Task<Result<void>> begin(std::string directory,
                           std::function<void(std::uint64_t done, std::uint64_t total)> report,
                           std::function<Result<void>()> check);
  /// Also fails when something could not be taken that begin() did not wait for.
  Task<Result<MemorySaveFigures>> finish();
  /// The machine runs on, the files go.
  Task<> abandon();
  bool is_active() const { return hold_.has_value(); }

 private:
  class DiskSyncing;
  using Report = std::function<void(std::uint64_t done, std::uint64_t total)>;
  using Check = std::function<Result<void>()>;
  Task<Result<void>> copy_and_stop(const Report& report, const Check& check);
  Task<Result<void>> copy_everything(const Report& report, const Check& check);
  /// Until there is little left to copy, and to flush.
  Task<Result<void>> copy_rounds(const Report& report, const Check& check, DiskSyncing& disks);
  Result<std::vector<memory::PageRange>> leave_out(memory::PageRange range);
  Task<> ready_staging(const bool& wanted);
  Task<Result<std::vector<memory::PageRange>>> take_dirty();
  Task<Result<void>> copy_round(const std::vector<memory::PageRange>& dirty);
  Task<Result<void>> stop();
  Task<> take();
  Task<Result<void>> take_rest();
  Task<Result<void>> go_on();
  Task<Result<void>> write_out();
  void forget();

  UringLoop& loop_;
  SavedGuest& machine_;
  std::string directory_;
  std::optional<AsyncMutex::Guard> hold_;
  std::unique_ptr<DeviceStateReceiver> devices_;
  std::string device_state_;
  std::unique_ptr<memory::MemoryImageWriter> writer_;
  std::unique_ptr<memory::DirtyScan> scan_;
  std::vector<memory::PageRange> left_out_;  // of the copy of everything: the next round has it
  std::atomic<bool> stop_copying_{false};
  std::atomic<std::uint64_t> copied_{0};
  std::uint64_t looked_at_ = 0;  // by the copy of everything, and what of it had been written again
  std::uint64_t found_written_ = 0;
  std::atomic<double> dirty_share_{0};
  std::uint64_t readied_ = 0;  // bytes of the staging
  bool beginning_ = false;
  Event begun_;
  Gate taking_;
  Result<void> taken_;
  AsyncMutex ending_;  // finish() or abandon()
  bool slowed_ = false;
  bool stopped_ = false;
  bool rested_ = false;
  Instant last_take_{};
  MemorySaveFigures figures_;
};

}  // namespace berth::machine
