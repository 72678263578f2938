#include "disk/closed_volume.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "disk/hold_layer.h"
#include "disk/locked_file.h"
#include "disk/sabotage.h"

namespace berth::disk {
namespace {

constexpr std::size_t pages_at_once = 256;  // read together: 2 MiB
constexpr const char* what_else =
    "; take it as a copy instead ('copied'): it becomes another volume, and its next backup a full "
    "one";

Error damaged(const Directory& directory, std::string_view what) {
  return {ErrorKind::corrupt,
          fmt::format("the volume in '{}' is damaged: {}; 'berth volume check --repair' may help",
                      directory.path(), what)};
}

}  // namespace

Task<Result<std::unique_ptr<ClosedVolume>>> ClosedVolume::open(Loop& loop, Directory& directory,
                                                               bool read_only) {
  const bool exists = CO_TRY(directory.exists(MapFile::file_name));
  if (!exists) {
    co_return failure(ErrorKind::not_found,
                      fmt::format("there is no volume in '{}'", directory.path()));
  }
  auto map = CO_TRY(co_await MapFile::open(loop, directory, read_only));
  std::unique_ptr<ClosedVolume> volume(new ClosedVolume(loop, directory, std::move(map)));
  CO_TRY(volume->check_geometry());
  volume->data_ = CO_TRY(co_await open_locked(loop, directory, "data", {.read_only = read_only}));
  volume->identity_ = CO_TRY(volume->data_->identity());
  co_return volume;
}

/// The records have right checksums, and may still come from anywhere.
Result<void> ClosedVolume::check_geometry() const {
  const VolumeState& now = state();
  if (now.size == 0 || now.size > volume_size_max || now.size % 512 != 0)
    return failure(damaged(directory_, fmt::format("a size of {} bytes cannot be", now.size)));
  if (now.epoch == 0 || now.epoch > epoch_max)
    return failure(damaged(directory_, fmt::format("an epoch of {} cannot be", now.epoch)));
  return {};
}

Result<void> ClosedVolume::check_closed() const {
  if (state().clean) return {};
  return failure(ErrorKind::precondition,
                 fmt::format("the volume in '{}' was not closed: what its keeper knew last is not "
                             "in its files. Open it where it was and stop it there",
                             directory_.path()));
}

bool ClosedVolume::has_content_of_the_close() const {
  const FileIdentity& known = state().data;
  return identity_.size == known.size && identity_.modified_ns == known.modified_ns &&
         identity_.device_id == known.device_id;
}

Result<void> ClosedVolume::check_arrival(Arrival arrival) const {
  if (identity_.size < state().size && !state().pending_resize) {
    return failure(damaged(directory_, fmt::format("its data file has {} bytes, the volume {}",
                                                   identity_.size, state().size)));
  }
  if (arrival == Arrival::copied) return {};
  if (auto closed = check_closed(); !closed) {
    return failure(ErrorKind::precondition,
                   fmt::format("{}, then move it again{}", closed.error().message(), what_else));
  }
  if (has_content_of_the_close() || sabotaged(Sabotage::ignore_changed_data)) return {};
  std::string_view difference = "it has another time of modification";
  if (identity_.size != state().data.size) difference = "it has another size";
  if (identity_.device_id != state().data.device_id) difference = "it is on another device";
  return failure(
      ErrorKind::precondition,
      fmt::format("the data file in '{}' is not known to be as it was when the volume was closed: "
                  "{}. Move it again with what keeps times to the nanosecond ('cp -a', 'rsync -a', "
                  "'mv', 'berth volume export'){}",
                  directory_.path(), difference, what_else));
}

// --- What is in it.

Task<Result<ClosedVolume::Contents>> ClosedVolume::read_contents() {
  if (contents_) co_return *contents_;
  Contents contents;
  std::uint64_t with_content = 0;
  contents.page_versions = CO_TRY(co_await read_pages(&with_content));
  const bool holds_backing = CO_TRY(co_await read_holds());
  const std::uint64_t over_backing =
      state().backing.empty() ? 0 : divide_up(state().backing_limit, superblock().block_size);
  contents.needs_backing = with_content < over_backing || holds_backing;
  contents_ = contents;
  co_return contents;
}

/// The sum of the sequences, and how many of the blocks over the backing do not read it.
Task<Result<std::uint64_t>> ClosedVolume::read_pages(std::uint64_t* with_content) {
  const std::uint64_t block_size = superblock().block_size;
  const std::uint64_t page_count = page_count_for(divide_up(state().size, block_size));
  const std::uint64_t over_backing = divide_up(state().backing_limit, block_size);
  std::uint64_t versions = 0;
  std::vector<MapWord> words(pages_at_once * words_per_page);
  std::uint64_t page = CO_TRY(map_->next_written_page(0, page_count));
  while (page < page_count) {
    const std::size_t count = std::min<std::uint64_t>(pages_at_once, page_count - page);
    const auto loaded = CO_TRY(co_await map_->read_pages(page, count, words));
    for (std::size_t i = 0; i < count; ++i) {
      if (loaded[i].damaged) {
        co_return failure(
            damaged(directory_, fmt::format("both copies of page {} of the map", page + i)));
      }
      versions += loaded[i].sequence;
      if (loaded[i].sequence == 0) continue;
      const BlockIndex first = (page + i) * words_per_page;
      const BlockIndex end = std::min(first + words_per_page, std::max(over_backing, first));
      const auto page_words = std::span(words).subspan(i * words_per_page, end - first);
      *with_content += static_cast<std::uint64_t>(std::ranges::count_if(
          page_words, [](MapWord word) { return word.state() != BlockState::absent; }));
    }
    page = CO_TRY(map_->next_written_page(page + count, page_count));
  }
  co_return versions;
}

/// Whether a checkpoint reads the backing.
Task<Result<bool>> ClosedVolume::read_holds() {
  bool holds_backing = false;
  const auto holds = CO_TRY(directory_.open_directory(HoldLayer::directory_name, true));
  for (const Layer& layer : state().layers) {
    // Of a cut that did not become one: an open drops it.
    if (state().clean && layer.epoch >= state().epoch) continue;
    const auto opened = co_await HoldLayer::open(loop_, *holds,
                                                 {.volume = superblock().volume,
                                                  .id = layer.id,
                                                  .epoch = layer.epoch,
                                                  .block_size = superblock().block_size},
                                                 divide_up(state().size, superblock().block_size));
    if (!opened) co_return failure(damaged(directory_, opened.error().message()));
    holds_backing = holds_backing || (*opened)->holds_backing();
  }
  co_return holds_backing;
}

// --- The arrival.

/// A copy that nobody has synced is whole until the power fails: what is recorded of it must not
/// outlive it. Holds were synced when they were read.
Task<Result<void>> ClosedVolume::sync_files() {
  if (sabotaged(Sabotage::settle_before_sync)) co_return Result<void>{};
  CO_TRY(co_await map_->fill_holes());
  CO_TRY(co_await data_->sync_all());  // its time of modification too
  const auto holds = CO_TRY(directory_.open_directory(HoldLayer::directory_name, true));
  CO_TRY(holds->sync());
  co_return directory_.sync();
}

Task<Result<Settled>> ClosedVolume::settle(Random& random, Arrival arrival) {
  CO_TRY(check_arrival(arrival));
  const Contents contents = CO_TRY(co_await read_contents());
  if (arrival == Arrival::moved && contents.page_versions != state().page_versions)
    co_return failure(damaged(directory_, "pages of its map that were there at the close are not"));
  CO_TRY(co_await sync_files());
  IdentityEvent event{.volume = id(), .data = CO_TRY(data_->identity())};
  Settled settled;
  if (arrival == Arrival::moved) {
    settled.volume = event.volume;
    if (event.data == state().data) co_return settled;
  } else {
    event.volume = settled.volume = random.id();
    event.lost = state().clean && !has_content_of_the_close();
    if (!sabotaged(Sabotage::vouch_for_copies)) {
      event.vouched_since = state().epoch;
      event.void_reason = VoidReason::copied;
    }
    for (const auto& [name, refpoint] : state().refpoints) {
      if (refpoint.epoch >= state().vouched_since) settled.void_refpoints.push_back(name);
    }
    for (const Checkpoint& checkpoint : state().checkpoints) {
      if (event.lost && !checkpoint.lost) settled.lost_checkpoints.push_back(checkpoint.name);
    }
  }
  CO_TRY(co_await map_->append(std::move(event)));
  co_return settled;
}

}  // namespace berth::disk
