// Create, open (after a clean close, the process's death, or the machine's), close.
#include <algorithm>
#include <bit>
#include <cstring>

#include <fmt/format.h>

#include "disk/engine.h"
#include "disk/likely_state.h"
#include "disk/locked_file.h"
#include "disk/sabotage.h"

namespace berth::disk {
namespace {

constexpr const char* data_name = "data";
constexpr const char* description_name = "volume.json";
constexpr std::size_t pages_at_once = 256;  // read together when the map is loaded: 2 MiB

Result<void> check_geometry(const CreateOptions& options) {
  if (!std::has_single_bit(options.block_size) || options.block_size < block_size_min ||
      options.block_size > block_size_max) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("a block size of {} is not a power of two from {} to {}",
                               options.block_size, block_size_min, block_size_max));
  }
  if (options.size > volume_size_max) {
    return failure(ErrorKind::invalid_argument, fmt::format("a size of {} is above the limit of {}",
                                                            options.size, volume_size_max));
  }
  if (options.size % 512 != 0) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("a size of {} is not a multiple of 512", options.size));
  }
  if (options.backing.size() > 4096)
    return failure(ErrorKind::limit, "the backing's name is over 4096 bytes");
  return {};
}

/// The same bytes in another file, as far as can be seen: the directory was copied or moved.
bool looks_copied(const FileIdentity& was, const FileIdentity& now) {
  return was.size == now.size && was.modified_ns == now.modified_ns &&
         was.device_id == now.device_id && was.device_id.empty();
}
constexpr std::string_view copied_hint =
    ". It looks like a copy of the one that it was: 'berth volume import --moved' or '--copied' "
    "keeps the points of a volume that comes from elsewhere, before it is opened here";

Task<Result<void>> write_description(Directory& directory, const Superblock& superblock,
                                     const CreateOptions& options) {
  const std::string text = fmt::format(
      "{{\n  \"what\": \"a Berth volume; see docs/formats/. For people and lists: the engine does "
      "not read this file.\",\n"
      "  \"id\": \"{}\",\n  \"size\": {},\n  \"block_size\": {}\n}}\n",
      superblock.volume.to_string(), options.size, superblock.block_size);
  auto file = CO_TRY(directory.open(description_name, {.create = true}));
  CO_TRY(co_await file->write(0, as_bytes(text)));
  co_return co_await file->sync();
}

}  // namespace

Task<Result<void>> Volume::create(VolumeEnvironment environment, CreateOptions options) {
  Directory& directory = environment.directory;
  const bool exists = CO_TRY(directory.exists("map"));
  if (exists)
    co_return failure(ErrorKind::already_exists,
                      fmt::format("'{}' is a volume already", directory.path()));

  VolumeState state;
  if (!options.backing.empty()) {
    if (options.adopt)
      co_return failure(ErrorKind::invalid_argument, "an adopted disk has no backing");
    if (!environment.open_backing)
      co_return failure(ErrorKind::unsupported, "backings cannot be opened here");
    const auto backing = CO_TRY(co_await environment.open_backing(options.backing));
    state.backing = options.backing;
    state.backing_limit = CO_TRY(backing->size());
    if (options.size == 0) options.size = round_up(state.backing_limit, 512);
    state.backing_limit = std::min(state.backing_limit, options.size);
  }
  auto data = CO_TRY(co_await open_locked(environment.loop, directory, data_name,
                                          {.create = !options.adopt, .exclusive = !options.adopt}));
  const std::uint64_t data_size = CO_TRY(data->size());
  if (options.adopt && options.size == 0) options.size = data_size;
  CO_TRY(check_geometry(options));
  if (options.size == 0) co_return failure(ErrorKind::invalid_argument, "a volume needs a size");
  if (options.adopt && data_size < options.size) {
    co_return failure(
        ErrorKind::invalid_argument,
        fmt::format("the disk has {} bytes, fewer than the size of {}", data_size, options.size));
  }
  if (!options.adopt) CO_TRY(data->truncate(options.size));
  CO_TRY(co_await data->sync_all());

  state.size = options.size;
  state.clean = true;
  state.data = CO_TRY(data->identity());
  const auto now_ms = std::chrono::duration_cast<std::chrono::milliseconds>(
      environment.loop.wall_time().time_since_epoch());
  const Superblock superblock{.volume = environment.random.id(),
                              .block_size = options.block_size,
                              .created_ms = now_ms.count()};
  const auto holds = CO_TRY(directory.open_directory(HoldLayer::directory_name, true));
  CO_TRY(holds->sync());
  CO_TRY(co_await write_description(directory, superblock, options));
  // The map comes last: a directory without one is no volume.
  CO_TRY(co_await MapFile::create(environment.loop, directory, superblock, std::move(state)));
  co_return directory.sync();
}

Task<Result<std::unique_ptr<Volume>>> Volume::open(VolumeEnvironment environment,
                                                   OpenOptions options) {
  co_return CO_TRY(co_await Engine::open(std::move(environment), options));
}

Engine::Engine(VolumeEnvironment environment, OpenOptions options, std::unique_ptr<MapFile> map)
    : environment_(std::move(environment)),
      options_(options),
      loop_(environment_.loop),
      map_(std::move(map)),
      block_size_(map_->superblock().block_size),
      block_shift_(static_cast<unsigned>(std::countr_zero(map_->superblock().block_size))),
      tasks_(loop_),
      intents_(loop_, tasks_, *map_, options.hot_regions_max, [this] { request_cooling(); }),
      locks_(loop_),
      gate_opened_(loop_),
      drained_(loop_),
      exclusive_ended_(loop_),
      requests_ended_(loop_),
      giving_up_(loop_),
      map_flush_(loop_),
      flushed_(loop_) {}

Engine::~Engine() = default;

void Engine::abandon() { tasks_.abandon(); }

void Engine::report(VolumeEvent::Kind kind, std::string message) const {
  if (environment_.report_event)
    environment_.report_event({.kind = kind, .message = std::move(message)});
}

Task<Result<std::unique_ptr<Engine>>> Engine::open(VolumeEnvironment environment,
                                                   OpenOptions options) {
  auto map = co_await MapFile::open(environment.loop, environment.directory, false);
  if (!map) {
    co_return failure(std::move(map).error().with_context(
        fmt::format("cannot open the volume '{}'", environment.directory.path())));
  }
  // Destroyed before the end, in a simulation, the process has died while it opened.
  const auto drop = [](Engine* unfinished) {
    unfinished->abandon();
    delete unfinished;
  };
  std::unique_ptr<Engine, decltype(drop)> engine(
      new Engine(std::move(environment), options, std::move(*map)), drop);
  auto opened = co_await engine->open_parts();
  if (!opened) {
    co_await engine->tasks_.drained();
    co_return failure(std::move(opened).error());
  }
  co_return std::unique_ptr<Engine>(engine.release());
}

Task<Result<void>> Engine::open_parts() {
  CO_TRY(co_await open_data());
  CO_TRY(co_await open_backing());
  CO_TRY(co_await open_live_map());
  CO_TRY(co_await open_layers());
  if (backing_missing_ && needs_backing()) co_return failure(Error(*backing_missing_));
  co_return co_await roll_forward();
}

Task<Result<void>> Engine::open_data() {
  const bool whole_sectors = size() % sector_size == 0;
  data_ = CO_TRY(co_await open_locked(loop_, environment_.directory, data_name,
                                      {.direct = options_.direct && whole_sectors}));
  alignment_ = options_.direct && whole_sectors ? sector_size : 1;
  const std::uint64_t data_size = CO_TRY(data_->size());
  if (data_size < size() && !map_->state().pending_resize) {
    co_return failure(ErrorKind::corrupt,
                      fmt::format("the data file '{}' has {} bytes, the volume {}", data_->name(),
                                  data_size, size()));
  }
  co_return Result<void>{};
}

/// One that is not there any more is missed only where something of it is.
Task<Result<void>> Engine::open_backing() {
  has_backing_ = !map_->state().backing.empty();
  if (!has_backing_) co_return Result<void>{};
  if (!environment_.open_backing)
    co_return failure(ErrorKind::unsupported, "backings cannot be opened here");
  backing_size_ = map_->state().backing_limit;
  auto backing = co_await environment_.open_backing(map_->state().backing);
  if (!backing) {
    backing_missing_ = std::move(backing).error().with_context(
        fmt::format("cannot open the backing '{}'", map_->state().backing));
    co_return Result<void>{};
  }
  const std::uint64_t available = CO_TRY((*backing)->size());
  if (available < backing_size_) {
    backing_missing_ =
        Error(ErrorKind::corrupt, fmt::format("the backing '{}' has {} bytes, {} are needed",
                                              map_->state().backing, available, backing_size_));
    co_return Result<void>{};
  }
  backing_ = std::move(*backing);
  co_return Result<void>{};
}

/// Whether a block of the disk, or of a checkpoint, is still to be read from the backing.
bool Engine::needs_backing() const {
  for (BlockIndex block = 0; block < block_count() && block_offset(block) < backing_size_;
       ++block) {
    if (live_->word(block).state() == BlockState::absent) return true;
  }
  return std::ranges::any_of(layers_, [](const auto& layer) { return layer->holds_backing(); });
}

LiveMap::Key Engine::live_key(const Id128& session) const {
  return {.volume = map_->volume(),
          .session = session,
          .block_size = block_size_,
          .page_count = page_count_for(block_count())};
}

/// Which map is to be believed: the live one, if the process died (exact); else the one on disk,
/// with the intents if it was not closed (rule 2).
Task<Result<void>> Engine::open_live_map() {
  const VolumeState& state = map_->state();
  intents_.set_region_count(divide_up(size(), region_size));
  const IntentRing ring = CO_TRY(co_await map_->read_intents());
  const bool taken_over = CO_TRY(co_await take_over(ring));
  if (taken_over) co_return Result<void>{};

  OpenEvent event{.kind = OpenKind::clean,
                  .session = environment_.random.id(),
                  .intents_before = ring.newest_sequence()};
  const bool died = !state.clean;
  const FileIdentity was = state.data;
  const FileIdentity now = CO_TRY(data_->identity());
  const bool foreign = state.clean && was != now;
  const auto doubtful = CO_TRY(co_await load_map(state.epoch, event.session));
  Epoch newest_epoch = state.epoch;
  for (std::uint64_t page = 0; page < live_->page_count(); ++page) {
    newest_epoch = std::max(newest_epoch, live_->page(page).epoch_max);
  }
  // Damage takes versions away, so the sum cannot be right without all of them.
  const std::uint64_t versions_missing =
      state.clean ? state.page_versions - live_->page_versions() : 0;
  if (versions_missing != 0) {
    event.void_reason = VoidReason::pages_damaged;
    CO_TRY(mend_states(doubtful, versions_missing));
  }
  IntentRecord hot{.sequence = ring.newest_sequence(), .epoch = 0, .regions = {}};
  if (died) {
    event.kind = OpenKind::power_loss;
    if (ring.newest_sequence() > state.intents_before) {
      hot = *ring.newest();
      give_recovered_epochs(hot);
      event.recovered = hot.epoch;
      newest_epoch = std::max(newest_epoch, hot.epoch);
      event.intents_before =
          state.intents_before;  // until these regions have cooled, the record counts
    }
    if (ring.may_lack_newer(state.intents_before)) {
      event.void_reason = VoidReason::intents_missing;
      // Nor is it known how far the epochs had come. Behind a layer's own, blocks were held in it.
      for (const Layer& layer : state.layers)
        newest_epoch = std::max(newest_epoch, layer.epoch + 1);
    }
    if (!sabotaged(Sabotage::reuse_recovered_epoch)) ++newest_epoch;
  } else if (foreign) {
    event.kind = OpenKind::foreign_data;
    event.void_reason = VoidReason::data_file_changed;
    ++newest_epoch;
  }
  if (newest_epoch > epoch_max)
    co_return failure(ErrorKind::limit, "the volume has used up its epochs");
  intents_.restore(hot);
  live_->set_epoch(newest_epoch);
  event.epoch = newest_epoch;
  if (event.void_reason != VoidReason::none) event.vouched_since = newest_epoch;
  CO_TRY(co_await map_->append(event));
  if (died) {
    report(
        VolumeEvent::Kind::recovered_from_power_loss,
        fmt::format(
            "the volume was not closed and the machine has restarted: {} regions may over-report",
            intents_.hot_count()));
  }
  if (event.void_reason != VoidReason::none) {
    report(VolumeEvent::Kind::refpoints_void,
           fmt::format("{}: earlier reference points are void{}", to_string(event.void_reason),
                       foreign && looks_copied(was, now) ? copied_hint : ""));
  }
  // What was found out of the blocks' states must not depend on the damaged pages again.
  if (versions_missing != 0) CO_TRY(co_await flush_map(dirty_epochs | dirty_states));
  co_return Result<void>{};
}

/// Goes on with the live map of a process that died, if there is one.
Task<Result<bool>> Engine::take_over(const IntentRing& ring) {
  const VolumeState& state = map_->state();
  if (state.clean) co_return false;
  auto adopted = LiveMap::adopt(environment_.live_store, live_key(state.session));
  if (!adopted) {
    if (adopted.error().kind() == ErrorKind::not_found) co_return false;
    co_return failure(std::move(adopted).error());
  }
  live_.emplace(std::move(*adopted));
  CO_TRY(remove_successor());
  if (ring.newest_sequence() > state.intents_before) {
    intents_.restore(*ring.newest());
  } else {
    // A record that follows must not be taken for one of those that say nothing any more.
    intents_.restore(
        {.sequence = std::max(ring.newest_sequence(), state.intents_before), .regions = {}});
  }
  // What the ring has lost covers nothing: then the pages must.
  if (ring.may_lack_newer(state.intents_before))
    CO_TRY(co_await flush_map(dirty_epochs | dirty_states));
  co_return true;
}

/// A new live map with what the disk has; the pages that are doubtful.
Task<Result<std::vector<std::uint64_t>>> Engine::load_map(Epoch epoch, const Id128& session) {
  live_.emplace(CO_TRY(LiveMap::create(environment_.live_store, live_key(session), epoch)));
  std::vector<std::uint64_t> doubtful;
  std::vector<MapWord> words(pages_at_once * words_per_page);
  std::uint64_t page = CO_TRY(map_->next_written_page(0, live_->page_count()));
  while (page < live_->page_count()) {
    const std::size_t count = std::min<std::uint64_t>(pages_at_once, live_->page_count() - page);
    const auto loaded = CO_TRY(co_await map_->read_pages(page, count, words));
    for (std::size_t i = 0; i < count; ++i) {
      if (loaded[i].damaged) {
        co_return failure(
            ErrorKind::corrupt,
            fmt::format(
                "the block map of '{}' is damaged: both copies of page {}; 'berth volume check "
                "--repair' reports its blocks as changed and goes on",
                environment_.directory.path(), page + i));
      }
      if (loaded[i].doubtful) doubtful.push_back(page + i);
      if (loaded[i].sequence == 0) continue;
      LivePage& live_page = live_->page(page + i);
      live_page.sequence = loaded[i].sequence;
      const auto source = std::span(words).subspan(i * words_per_page, words_per_page);
      std::ranges::copy(source, live_->page_words(page + i).begin());
      for (const MapWord word : source)
        live_page.epoch_max = std::max(live_page.epoch_max, word.epoch());
    }
    page = CO_TRY(map_->next_written_page(page + count, live_->page_count()));
  }
  co_return doubtful;
}

/// Versions of pages that were there at the close are not. Which blocks have changed cannot be
/// known any more, but where their content is can, mostly. Where every missing version can be one
/// beside a slot that is damaged, the other pages are as they were.
Result<void> Engine::mend_states(std::span<const std::uint64_t> doubtful,
                                 std::uint64_t versions_missing) {
  for (const std::uint64_t page : doubtful) {
    const BlockIndex first = page * words_per_page;
    const BlockIndex end = std::min(block_count(), first + words_per_page);
    for (BlockIndex block = first; block < end; ++block) {
      const MapWord word = live_->word(block);
      const bool known = live_->page(page).sequence != 0;
      const bool data = TRY(has_data(*data_, block_offset(block), block_length(block)));
      live_->set_word(
          block,
          MapWord::of(word.epoch(), likely_state(known ? std::optional(word.state()) : std::nullopt,
                                                 data, has_backing_)));
    }
  }
  if (versions_missing <= doubtful.size()) return {};
  // A page that reads as if it never had another version than the first one, or none, may have had.
  for (std::uint64_t offset = 0; offset < size();) {
    const std::uint64_t data = TRY(data_->next_data(offset));
    if (data >= size()) break;
    offset = std::min(size(), TRY(data_->next_hole(data)));
    for (BlockIndex block = block_of(data); block <= block_of(offset - 1); ++block) {
      const MapWord word = live_->word(block);
      if (live_->page(page_of(block)).sequence <= 1 && state_of(word) != BlockState::present)
        live_->set_word(block, MapWord::of(word.epoch(), BlockState::present));
    }
  }
  return {};
}

/// Every block of a region that was hot may have been written in any epoch up to the region's (rule
/// 2). The states stay: what was present on disk is, and what was not was not flushed.
void Engine::give_recovered_epochs(const IntentRecord& intents) {
  for (const HotRegion& hot : intents.regions) {
    const BlockIndex first = block_of(hot.region * region_size);
    const BlockIndex end =
        std::min(block_count(),
                 std::max<BlockIndex>(block_of((hot.region + 1ULL) * region_size), first + 1));
    for (BlockIndex block = first; block < end; ++block) {
      const MapWord word = live_->word(block);
      if (word.epoch() < hot.epoch) live_->set_word(block, MapWord::of(hot.epoch, word.state()));
    }
  }
}

Task<Result<void>> Engine::open_layers() {
  holds_ = CO_TRY(environment_.directory.open_directory(HoldLayer::directory_name, true));
  next_layer_ = map_->state().next_layer;
  // Of a cut that died between its two phases: its epoch goes on, and nothing was held in the
  // layer.
  const std::vector<Layer> recorded = map_->state().layers;
  for (const Layer& layer : recorded) {
    if (layer.epoch < live_->epoch()) continue;
    CO_TRY(co_await map_->append(
        LayerEvent{.layer = layer.id, .epoch = layer.epoch, .present = false}));
  }
  for (const Layer& layer : map_->state().layers) {
    auto opened = co_await HoldLayer::open(loop_, *holds_,
                                           {.volume = map_->superblock().volume,
                                            .id = layer.id,
                                            .epoch = layer.epoch,
                                            .block_size = block_size_},
                                           block_count());
    if (!opened) {
      co_return failure(std::move(opened).error().with_context(
          fmt::format("cannot open a hold of the volume '{}'; 'berth volume check --repair' gives "
                      "its checkpoints up",
                      environment_.directory.path())));
    }
    layers_.push_back(std::move(*opened));
  }
  refresh_layers();
  // Files of layers that are gone: of a cut that was not recorded, or a removal cut short.
  for (const std::string& name : CO_TRY(holds_->list())) {
    const auto same = [&name](const auto& layer) {
      return HoldLayer::file_name(layer->id()) == name;
    };
    if (std::ranges::none_of(layers_, same)) (void)holds_->remove(name);
  }
  co_return Result<void>{};
}

Task<Result<void>> Engine::roll_forward() {
  if (const auto resize = map_->state().pending_resize) CO_TRY(co_await finish_resize(*resize));
  if (const auto revert = map_->state().pending_revert;
      revert && !sabotaged(Sabotage::forget_revert)) {
    CO_TRY(co_await finish_revert(*revert));
  }
  co_return Result<void>{};
}

Task<Result<void>> Engine::close() {
  if (open_cut_) abort_cut({open_cut_->number});
  co_await tasks_.drained();
  while (mutations_ > 0) co_await drained_.wait();
  CO_TRY(co_await flush_map(dirty_epochs | dirty_states));
  for (const auto& layer : layers_) {
    layer->trim();
    CO_TRY(co_await layer->sync());
  }
  // The modification time is part of the identity: a power loss after this must not take it back.
  CO_TRY(co_await data_->sync_all());
  const FileIdentity identity = CO_TRY(data_->identity());
  CO_TRY(co_await map_->append(CloseEvent{
      .epoch = live_->epoch(), .data = identity, .page_versions = live_->page_versions()}));
  co_await tasks_.drained();
  co_return LiveMap::remove(environment_.live_store, map_->volume(), live_->page_count());
}

VolumeInfo Engine::info() const {
  VolumeInfo info{.id = map_->volume(),
                  .size = size(),
                  .block_size = block_size_,
                  .backing = map_->state().backing,
                  .epoch = live_->epoch(),
                  .failed = map_->failed() || sync_failure_.has_value(),
                  .hot_regions = intents_.hot_count(),
                  .hot_regions_max = intents_.hot_max(),
                  .held_bytes = 0,
                  .requests_in_flight = mutations_,
                  .checkpoints = map_->state().checkpoints.size(),
                  .refpoints = map_->state().refpoints.size()};
  for (const auto& layer : layers_) info.held_bytes += layer->bytes_used();
  return info;
}

}  // namespace berth::disk
