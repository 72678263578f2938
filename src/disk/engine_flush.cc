// Making things durable: data before the map that vouches for it (rule 4).
#include <algorithm>
#include <span>
#include <utility>

#include "disk/engine.h"
#include "disk/sabotage.h"

namespace berth::disk {
namespace {

constexpr std::size_t pages_at_once = 1024;  // captured copies in memory: 4 MiB

}  // namespace

Task<Result<void>> Engine::sync_data() {
  if (sync_failure_) co_return failure(Error(*sync_failure_));
  auto synced = co_await data_->sync();
  if (!synced && !sync_failure_) {
    // What the kernel could not write it may have dropped. Nobody can know what is on the disk now.
    sync_failure_ = Error(ErrorKind::io_error,
                          "a sync of the data file has failed; close the volume and open it again",
                          std::move(synced).error());
    // Blocks that became present since the last flush may be gone from the data file; on disk the
    // map still has them as they were. So the next open must believe the disk, not the live map.
    live_->set_session({});
    report(VolumeEvent::Kind::io_failed, sync_failure_->message());
    intents_.fail(Error(*sync_failure_));
  }
  if (sync_failure_) co_return failure(Error(*sync_failure_));
  co_return Result<void>{};
}

Task<Result<void>> Engine::flush() {
  if (exclusive_) co_await admitted();
  const Request request(*this);
  co_return co_await flush_shared();
}

/// One flush at a time. A caller needs one that began after it came.
Task<Result<void>> Engine::flush_shared() {
  const std::uint64_t wanted = flushes_begun_ + 1;
  while (flushes_ended_ < wanted) {
    if (flush_running_) {
      co_await flushed_.wait();
      continue;
    }
    flush_running_ = true;
    const std::uint64_t mine = ++flushes_begun_;
    // Epochs that are not on disk are covered by the intents; states are not.
    auto result = co_await flush_map(dirty_states);
    flush_running_ = false;
    flushes_ended_ = mine;
    flush_error_.reset();
    if (!result) flush_error_ = std::move(result).error();
    flushed_.notify_all();
  }
  if (flush_error_) co_return failure(Error(*flush_error_));
  co_return Result<void>{};
}

/// Syncs the data, and writes the pages that have this dirt. Capture, sync, write, sync: a page on
/// disk never says "present" of bytes that are not there.
Task<Result<void>> Engine::flush_map(std::uint8_t dirt) {
  const auto guard = co_await map_flush_.lock();
  const std::vector<std::uint64_t> pages = live_->take_dirty(dirt);
  if (pages.empty()) co_return co_await sync_data();
  for (std::size_t done = 0; done < pages.size();) {
    const std::size_t count = std::min(pages_at_once, pages.size() - done);
    auto flushed = co_await flush_batch(std::span(pages).subspan(done, count));
    if (!flushed) {
      for (const std::uint64_t page : std::span(pages).subspan(done + count)) live_->relist(page);
      co_return flushed;
    }
    done += count;
  }
  co_return Result<void>{};
}

Task<Result<void>> Engine::flush_batch(std::span<const std::uint64_t> batch) {
  AlignedBuffer copies(batch.size() * page_size);
  const auto capture = [&] {
    for (std::size_t i = 0; i < batch.size(); ++i) {
      live_->begin_capture(batch[i]);
      encode_page(map_->superblock().volume,
                  {.page = batch[i], .sequence = live_->page(batch[i]).sequence + 1},
                  live_->page_words(batch[i]), copies.bytes().subspan(i * page_size, page_size));
    }
  };
  const auto restore = [&] {
    for (const std::uint64_t index : batch) live_->relist(index);
  };

  if (!sabotaged(Sabotage::presence_before_data)) capture();
  auto done = co_await sync_data();
  if (sabotaged(Sabotage::presence_before_data)) capture();
  if (done) {
    std::vector<Task<Result<void>>> writes;
    writes.reserve(batch.size());
    for (std::size_t i = 0; i < batch.size(); ++i) {
      writes.push_back(map_->write_page(batch[i], live_->page(batch[i]).sequence + 1,
                                        copies.bytes().subspan(i * page_size, page_size)));
    }
    done = co_await run_all(std::move(writes));
  }
  if (done) done = co_await map_->sync();
  if (!done) {
    restore();
    co_return done;
  }
  for (const std::uint64_t index : batch) live_->end_capture(index);
  co_return Result<void>{};
}

void Engine::request_cooling() {
  if (std::exchange(cooling_, true)) return;
  tasks_.spawn(cool());
}

/// Writes the map in full, and lets the older half of the hot regions cool.
Task<> Engine::cool() {
  const std::uint64_t captured = intents_.now();
  auto flushed = co_await flush_map(dirty_epochs | dirty_states);
  cooling_ = false;
  if (flushed) {
    intents_.cool(captured, intents_.hot_max() / 2);
  } else if (map_->failed() || sync_failure_) {
    intents_.fail(std::move(flushed).error());
  } else {
    // A full disk, say. Those who wait for room in the hot set hear of it; later ones try again.
    report(VolumeEvent::Kind::io_failed, flushed.error().message());
    intents_.refuse_pending(std::move(flushed).error());
  }
}

}  // namespace berth::disk
