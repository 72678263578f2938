#include "volume_world.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "base/aligned_buffer.h"

namespace berth::sim {
namespace {

constexpr std::uint64_t region = 4 * MiB;
constexpr int lives_max = 5;
constexpr std::uint64_t steps_max = 200'000;  // of a life; more is a hang

/// A backing: every sector holds `backing_content`.
class PatternFile final : public File {
 public:
  PatternFile(Loop& loop, std::uint64_t size) : loop_(loop), size_(size) {}
  void submit(FileRequest& request) override {
    const std::uint64_t length =
        request.offset >= size_ ? 0 : std::min(request.length, size_ - request.offset);
    for (std::uint64_t at = 0; at + model_sector <= length; at += model_sector) {
      fill_sector((request.offset + at) / model_sector, backing_content,
                  {request.data + at, model_sector});
    }
    request.result =
        request.kind == FileRequest::Kind::read ? static_cast<std::int64_t>(length) : -EROFS;
    loop_.post(request.waiter);
  }
  Result<std::uint64_t> size() override { return size_; }
  Result<void> truncate(std::uint64_t) override {
    return failure(ErrorKind::read_only, "a pattern");
  }
  Result<FileIdentity> identity() override { return FileIdentity{.size = size_}; }
  Result<std::uint64_t> next_data(std::uint64_t offset) override { return offset; }
  Result<std::uint64_t> next_hole(std::uint64_t) override { return size_; }
  const std::string& name() const override { return name_; }

 private:
  Loop& loop_;
  std::uint64_t size_;
  std::string name_ = "pattern";
};

Task<Result<std::unique_ptr<File>>> open_pattern(Loop* loop, std::uint64_t size) {
  co_return std::make_unique<PatternFile>(*loop, size);
}

}  // namespace

VolumeWorld::VolumeWorld(std::uint64_t seed, bool tell)
    : seed_(seed), tell_(tell), random_(mix64(seed)), host_(seed) {
  block_size_ = random_.one_in(4) ? 8 * KiB : 16 * KiB;
  backed_ = random_.one_in(3);
  const std::uint64_t regions = random_.one_in(2) ? 4 : 64;
  size_ = regions * region + (random_.one_in(2) ? 4096 * random_.between(1, 3) : 0);
  const std::uint64_t blocks = divide_up(size_, block_size_);
  std::set<std::uint64_t> active;
  const std::uint64_t clusters = regions > 4 && random_.one_in(2) ? 48 : random_.between(2, 10);
  for (std::uint64_t i = 0; i < clusters; ++i) {
    const std::uint64_t block = random_.below(blocks - 1);
    active.insert(block);
    if (clusters < 20) active.insert(block + 1);
  }
  active.insert(blocks - 1);
  active_blocks_.assign(active.begin(), active.end());
  std::vector<std::uint64_t> sectors;
  for (const std::uint64_t block : active_blocks_) {
    const std::uint64_t end = std::min(size_, (block + 1) * block_size_);
    for (std::uint64_t at = block * block_size_; at < end; at += model_sector)
      sectors.push_back(at / model_sector);
  }
  model_ = std::make_unique<DiskModel>(std::move(sectors), backed_ ? backing_content : zeros);
}

VolumeWorld::~VolumeWorld() { die(false); }

void VolumeWorld::violation(std::string what) {
  if (!violation_) violation_ = fmt::format("seed {}: {}", seed_, what);
}

disk::VolumeEnvironment VolumeWorld::environment() {
  SimLoop* loop = loop_.get();
  const std::uint64_t size = size_;
  return {
      .loop = *loop_,
      .directory = *directory_,
      .live_store = *memory_,
      .random = random_,
      .open_backing =
          [loop, size](const std::string& /*specification*/) { return open_pattern(loop, size); },
      .report_event = {}};
}

std::optional<std::string> VolumeWorld::run() {
  begin_process();
  disk::CreateOptions options{
      .size = size_, .block_size = block_size_, .backing = backed_ ? "pattern" : ""};
  const auto made = loop_->run_until_complete(disk::Volume::create(environment(), options));
  if (!made) violation("create: " + made.error().message());

  const auto lives = random_.between(2, lives_max);
  for (std::uint64_t life = 0; life < lives && !violation_; ++life) {
    make_faults();
    const bool ended = live_until_death();
    if (violation_) break;
    if (ended && !volume_ && !io_has_failed()) {
      settle_after(Ending::clean_close);
      if (random_.one_in(3)) travel();
      continue;
    }
    // After a failed sync the kernel may show what it will never write (pages that it counts as
    // clean). Only a power loss tells what there is: nobody who merely restarts can vouch for it.
    const bool power = random_.one_in(2) || io_has_failed();
    die(power);
    host_.faults().clear();
    settle_after(power ? Ending::power_loss : Ending::process_death);
    begin_process();
  }
  return violation_;
}

void VolumeWorld::begin_process() {
  loop_ = std::make_unique<SimLoop>(host_, mix64(seed_ + processes_++));
  directory_ = MUST(host_.open_directory(*loop_, place_));
  memory_ = host_.shared_memory();
}

/// Runs a life to its end (true) or to the moment of its death: mostly in the middle of its work,
/// seldom while it opens. Small budgets are as frequent as large ones, so that deaths meet
/// operations in flight.
bool VolumeWorld::live_until_death() {
  const std::uint64_t budget =
      random_.one_in(4) ? steps_max : std::uint64_t{1} << random_.between(2, 12);
  const bool die_opening = random_.one_in(6);
  working_since_.reset();
  dies_at_.reset();
  ended_ = false;
  life_ = std::make_unique<Gate>(*loop_);
  life_->spawn(live());
  const std::uint64_t born = loop_->steps();
  const auto over = [&] {
    if (dies_at_ && loop_->steps() >= *dies_at_) return true;
    if (ended_ || violation_ || loop_->steps() - born >= steps_max) return true;
    const std::optional<std::uint64_t> from = die_opening ? born : working_since_;
    return from && loop_->steps() - *from >= budget;
  };
  (void)loop_->run_until(over);
  if (!ended_ && !violation_ && loop_->steps() - born >= steps_max)
    violation("hangs: " + loop_->describe());
  return ended_;
}

void VolumeWorld::die(bool power) {
  if (life_) life_->abandon();
  if (workers_) workers_->abandon();
  if (volume_) volume_->abandon();
  volume_.reset();
  workers_.reset();
  life_.reset();
  directory_.reset();
  if (power) host_.power_loss();  // with everything in flight
  if (loop_) loop_->kill();
  loop_.reset();
}

void VolumeWorld::make_faults() {
  host_.faults().clear();
  hits_before_ = host_.faults().hits();
  host_.set_space_max(UINT64_MAX);
  faulty_ = random_.one_in(5);
  tight_ = !faulty_ && random_.one_in(6);
  if (faulty_) {
    const std::string path = place_ + (random_.one_in(2)   ? "/data"
                                       : random_.one_in(2) ? "/map"
                                                           : "/holds/*");
    const std::uint32_t on = random_.one_in(2) ? fault_on::sync : fault_on::write | fault_on::sync;
    host_.faults().add({.path = path,
                        .on = on,
                        .error = EIO,
                        .skip = random_.below(60),
                        .times = random_.between(1, 3)});
  }
  if (tight_) host_.set_space_max(host_.space_used() + random_.between(1, 40) * block_size_);
}

/// Whether an error is the honest answer to a fault of this life.
bool VolumeWorld::explained(const Error& error) {
  if (io_has_failed()) return true;
  return tight_ && (error.kind() == ErrorKind::no_space || error.kind() == ErrorKind::io_error ||
                    error.kind() == ErrorKind::precondition);
}

// --- A life: open, check, work, check, close or die.

Task<Result<void>> VolumeWorld::open_volume() {
  disk::OpenOptions options;
  options.hot_regions_max = 1;  // as few as it takes
  auto opened = co_await disk::Volume::open(environment(), options);
  if (!opened) co_return failure(std::move(opened).error());
  volume_ = std::move(*opened);
  const Id128 id = volume_->info().id;
  if (!id_.is_nil() && id != id_) violation("the volume has another id than before");
  id_ = id;
  co_return Result<void>{};
}

Task<> VolumeWorld::live() {
  const auto opened = co_await open_volume();
  tell("open: {}", opened ? "done" : opened.error().message());
  if (!opened) {
    if (!explained(opened.error())) violation("open: " + opened.error().message());
    ended_ = true;
    co_return;
  }
  co_await verify_live(true);
  co_await verify_points(true);
  workers_ = std::make_unique<Gate>(*loop_);
  working_since_ = loop_->steps();
  const auto rounds = random_.between(1, 3);
  for (std::uint64_t round = 0; round < rounds && !violation_; ++round) {
    actions_left_ = random_.between(10, 60);
    const auto count = random_.between(1, 6);
    for (std::uint64_t i = 0; i < count; ++i) workers_->spawn(work(static_cast<int>(i)));
    co_await workers_->drained();
    if (violation_) co_return;
    co_await loop_->sleep(
        std::chrono::seconds(1));  // a cut that was called off withdraws its layer
    if (random_.one_in(4)) co_await do_revert();
    if (random_.one_in(6)) co_await do_resize();
    co_await verify();
  }
  if (random_.one_in(3)) {
    const auto closed = co_await volume_->close();
    tell("close: {}", closed ? "done" : closed.error().message());
    if (!closed) {
      if (!explained(closed.error())) violation("close: " + closed.error().message());
      ended_ = true;
      co_return;
    }
    flushed_ = model_->now();
    volume_.reset();
    workers_.reset();
  }
  ended_ = true;
}

Task<> VolumeWorld::work(int /*worker*/) {
  while (actions_left_ > 0 && !violation_) {
    --actions_left_;
    co_await act();
    if (random_.one_in(3)) co_await loop_->sleep(std::chrono::microseconds(random_.below(2000)));
  }
}

Task<> VolumeWorld::act() {
  const auto dice = random_.below(100);
  if (dice < 38) co_return co_await do_write();
  if (dice < 50) co_return co_await do_read();
  if (dice < 56) co_return co_await do_zero();
  if (dice < 60) co_return co_await do_discard();
  if (dice < 67) co_return co_await do_flush();
  if (dice < 75) co_return co_await do_cut();
  if (dice < 78) co_return co_await do_group_cut();
  if (dice < 81) co_return co_await do_release();
  if (dice < 84) co_return co_await do_convert();
  if (dice < 85) co_return co_await do_delete_refpoint();
  if (dice < 93) co_return co_await do_read_checkpoint();
  if (dice < 96) co_return co_await do_changes();
  if (dice < 98) co_return co_await do_wrong_nonce();
  co_return co_await do_populate();
}

/// After an ending: what in the model is now decided, and what the next verification has to decide.
void VolumeWorld::settle_after(Ending ending) {
  tell("{}", ending == Ending::power_loss      ? "power loss"
             : ending == Ending::process_death ? "process death"
                                               : "closed");
  const Tick now = model_->now();
  for (auto* points : {&checkpoints_, &refpoints_}) {
    for (auto& [name, point] : *points) {
      if (point.cut_end == never) {
        point.cut_end = now;
        snapshot(point, point.cut_start, now);
      }
      if (ending == Ending::power_loss && point.durability == disk::Durability::volatile_ &&
          points == &checkpoints_) {
        point.may_be_lost = true;
      }
      if (tight_ && point.durability == disk::Durability::volatile_) point.may_be_lost = true;
    }
  }
  if (ending != Ending::clean_close && io_has_failed()) sync_had_failed_ = true;
  if (ending == Ending::power_loss) power_was_lost_ = true;  // until a life has seen the disk
}

// --- The volume, closed, goes to another place.

/// Copied as `cp -a` would, unsynced, and then said what it is; with deaths in the middle, after
/// which that is said again, of another copy where the power was lost. What was there before stays,
/// and is not looked at any more.
void VolumeWorld::travel() {
  host_.faults().clear();
  host_.set_space_max(UINT64_MAX);
  const std::string original = place_;
  const auto arrival = random_.one_in(3) ? disk::Arrival::copied : disk::Arrival::moved;
  const bool changed = arrival == disk::Arrival::moved && random_.one_in(6);
  for (bool copy = true; !violation_;) {
    if (copy) {
      die(false);
      place_ = fmt::format("place{}", ++places_);
      MUST(host_.copy_directory(original, place_));
      begin_process();
      if (changed) change_data_behind_its_back();
    }
    if (arrive_or_die(arrival)) break;
    host_.probes().hit("arrival_cut_short");
    copy = random_.one_in(2);
    die(copy);  // with the power
    begin_process();
  }
  if (violation_) return;
  tell("{} to {}: {}", arrival == disk::Arrival::moved ? "moved" : "copied", place_,
       *arrival_ ? "done" : arrival_->error().message());
  if (changed) {
    // The original is as it was.
    if (*arrival_ || arrival_->error().kind() != ErrorKind::precondition)
      return violation("a data file that was changed has been taken for the one of the close");
    host_.probes().hit("changed_data_refused");
    die(false);
    place_ = original;
    return begin_process();
  }
  if (!*arrival_) return violation("arrival: " + arrival_->error().message());
  host_.probes().hit(arrival == disk::Arrival::moved ? "moved" : "copied");
  if (arrival == disk::Arrival::moved && !id_.is_nil() && (*arrival_)->volume != id_)
    return violation("a volume that was moved has another id");
  if (arrival == disk::Arrival::copied && (*arrival_)->volume == id_)
    return violation("a copy has the id of its original");
  if (!(*arrival_)->lost_checkpoints.empty()) return violation("a copy has lost checkpoints");
  id_ = (*arrival_)->volume;
  for (auto* points : {&checkpoints_, &refpoints_}) {
    for (auto& [name, point] : *points)
      point.of_original = point.of_original || arrival == disk::Arrival::copied;
  }
  if (!random_.one_in(2)) return;
  die(true);  // what has arrived is durable
  begin_process();
}

/// False if the process was to die meanwhile, somewhere.
bool VolumeWorld::arrive_or_die(disk::Arrival arrival) {
  const std::uint64_t budget =
      random_.one_in(2) ? steps_max : std::uint64_t{1} << random_.between(2, 9);
  arrival_.reset();
  life_ = std::make_unique<Gate>(*loop_);
  life_->spawn(arrive(arrival));
  const std::uint64_t born = loop_->steps();
  (void)loop_->run_until([&] { return arrival_ || loop_->steps() - born >= budget; });
  if (!arrival_ && budget == steps_max) violation("an arrival hangs: " + loop_->describe());
  return arrival_.has_value();
}

Task<> VolumeWorld::arrive(disk::Arrival arrival) {
  auto volume = co_await disk::ClosedVolume::open(*loop_, *directory_, false);
  if (!volume) {
    arrival_.emplace(std::unexpected(std::move(volume).error()));
    co_return;
  }
  if (!id_.is_nil() && (*volume)->id() != id_ && arrival == disk::Arrival::moved)
    violation("a volume that was closed has another id");
  auto settled = co_await (*volume)->settle(random_, arrival);
  volume->reset();
  arrival_.emplace(std::move(settled));
}

void VolumeWorld::change_data_behind_its_back() {
  const auto done = loop_->run_until_complete(write_behind_its_back());
  if (!done) violation("somebody else's write: " + done.error().message());
}

Task<Result<void>> VolumeWorld::write_behind_its_back() {
  const auto data = CO_TRY(directory_->open("data", {}));
  const auto before = CO_TRY(data->identity());
  const AlignedBuffer content = AlignedBuffer::zeroed(4096);
  // The clock of a file system may be a coarse one.
  while (CO_TRY(data->identity()) == before) {
    co_await loop_->sleep(std::chrono::milliseconds(5));
    CO_TRY(co_await data->write(0, content.bytes()));
  }
  co_return co_await data->sync_all();
}

// --- Live I/O.

VolumeWorld::Range VolumeWorld::pick_range(std::uint64_t granularity) {
  const std::uint64_t block = random_.pick(active_blocks_);
  std::uint64_t blocks = 1;
  while (random_.one_in(3) && std::ranges::binary_search(active_blocks_, block + blocks)) ++blocks;
  const std::uint64_t start = block * block_size_;
  const std::uint64_t end = std::min(size_, start + blocks * block_size_);
  if (start >= end) return {.offset = 0, .length = 0};  // the volume has shrunk
  if (random_.one_in(3)) return {.offset = start, .length = end - start};
  const std::uint64_t units = (end - start) / granularity;
  if (units == 0) return {.offset = start, .length = end - start};
  const std::uint64_t first = random_.below(units);
  const std::uint64_t count = random_.between(1, std::min<std::uint64_t>(units - first, 12));
  return {.offset = start + first * granularity, .length = count * granularity};
}

void VolumeWorld::begin_change(Range range, Value value, bool certain, Tick* token) {
  const Tick now = model_->now();
  *token = now;
  model_->submit(range.offset / model_sector, range.length / model_sector, value, now, certain);
  for (std::uint64_t block = range.offset / block_size_;
       block * block_size_ < range.offset + range.length; ++block) {
    touches_[block].push_back({.submitted = now, .acknowledged = never});
  }
}

void VolumeWorld::end_change(Range range, Tick token, bool done) {
  if (!done) return;  // it may have happened in part
  const Tick now = model_->now();
  model_->acknowledge(range.offset / model_sector, range.length / model_sector, token, now);
  for (std::uint64_t block = range.offset / block_size_;
       block * block_size_ < range.offset + range.length; ++block) {
    for (Touch& touch : touches_[block]) {
      if (touch.submitted == token) touch.acknowledged = now;
    }
  }
}

Task<> VolumeWorld::do_write() {
  const Range range = pick_range(random_.one_in(4) ? model_sector : 4096);
  if (range.length == 0) co_return;
  AlignedBuffer content(range.length);
  const Value value = model_->next_value();
  for (std::uint64_t at = 0; at < range.length; at += model_sector) {
    fill_sector((range.offset + at) / model_sector, value,
                content.bytes().subspan(at, model_sector));
  }
  Tick token = 0;
  begin_change(range, value, true, &token);
  const auto written = co_await volume_->write(range.offset, content.bytes());
  end_change(range, token, written.has_value());
  tell("write {} + {}: value {} submitted {}: {}", range.offset, range.length, value, token,
       written ? "done" : written.error().message());
  if (!written && !explained(written.error())) violation("write: " + written.error().message());
}

Task<> VolumeWorld::do_read() {
  const Range range = pick_range(model_sector);
  if (range.length == 0) co_return;
  AlignedBuffer content(range.length);
  const Tick start = model_->now();
  const auto read = co_await volume_->read(range.offset, content.bytes());
  if (!read) {
    if (!explained(read.error())) violation("read: " + read.error().message());
    co_return;
  }
  const Tick end = model_->now();
  for (std::uint64_t at = 0; at < range.length; at += model_sector) {
    const std::uint64_t sector = (range.offset + at) / model_sector;
    const Value value = read_sector(sector, content.bytes().subspan(at, model_sector));
    // After a failed sync the kernel may have dropped what was not durable.
    const Tick from = io_has_failed() ? std::min(flushed_, start) : start;
    if (model_->is_possible(sector, value, from, end)) continue;
    if (io_has_failed()) continue;  // the filling of a block may have been dropped
    violation(fmt::format("a read of sector {} at {} to {} gives value {}; it has had: {}", sector,
                          start, end, value, model_->describe(sector)));
  }
}

Task<> VolumeWorld::do_zero() {
  const Range range = pick_range(random_.one_in(3) ? 4096 : block_size_);
  if (range.length == 0) co_return;
  Tick token = 0;
  begin_change(range, zeros, true, &token);
  const auto done = co_await volume_->zero(range.offset, range.length, false);
  tell("zero {} + {} submitted {}: {}", range.offset, range.length, token,
       done ? "done" : done.error().message());
  end_change(range, token, done.has_value());
  if (!done && !explained(done.error())) violation("zero: " + done.error().message());
}

Task<> VolumeWorld::do_discard() {
  const Range range = pick_range(block_size_);
  if (range.length == 0) co_return;
  Tick token = 0;
  begin_change(range, zeros, false, &token);
  const auto done = co_await volume_->discard(range.offset, range.length);
  tell("discard {} + {} submitted {}: {}", range.offset, range.length, token,
       done ? "done" : done.error().message());
  end_change(range, token, done.has_value());
  if (!done && !explained(done.error())) violation("discard: " + done.error().message());
}

Task<> VolumeWorld::do_flush() {
  const Tick start = model_->now();
  const auto done = co_await volume_->flush();
  tell("flush from {}: {}", start, done ? "done" : done.error().message());
  if (done) {
    flushed_ = std::max(flushed_, start);
  } else if (!explained(done.error())) {
    violation("flush: " + done.error().message());
  }
}

Task<> VolumeWorld::do_populate() {
  const auto done = co_await volume_->populate(random_.between(1, 8) * block_size_);
  if (!done && !explained(done.error())) violation("populate: " + done.error().message());
}

// --- Points.

void VolumeWorld::snapshot(Point& point, Tick start, Tick end) {
  for (const std::uint64_t sector : model_->sectors()) {
    if (!point.content.contains(sector))
      point.content[sector] = model_->possible(sector, start, end);
  }
}

void VolumeWorld::leave_undecided(Point& point, Tick start, Tick end) {
  point.cut_end = end;
  snapshot(point, start, end);
}

std::string VolumeWorld::pick_point(const std::map<std::string, Point>& points) {
  std::vector<std::string> names;
  for (const auto& [name, point] : points) {
    if (point.existence == Existence::certain) names.push_back(name);
  }
  return names.empty() ? std::string() : random_.pick(names);
}

Task<> VolumeWorld::do_cut() {
  if (checkpoints_.size() + refpoints_.size() > 12) co_return;
  disk::CutRequest request;
  const auto kind = random_.below(4);
  if (kind != 0) request.checkpoint = fmt::format("c{}", ++names_);
  if (kind == 0 || kind == 3) request.refpoint = fmt::format("r{}", ++names_);
  if (random_.one_in(3)) request.durability = disk::Durability::volatile_;
  const Tick start = model_->now();
  const Point point{.cut_start = start, .durability = request.durability, .size = size_};
  if (!request.checkpoint.empty()) checkpoints_[request.checkpoint] = point;
  if (!request.refpoint.empty()) refpoints_[request.refpoint] = point;
  const auto outcome = co_await volume_->cut(request);
  tell("cut {} {} from {}: {}", request.checkpoint, request.refpoint, start,
       outcome ? fmt::format("epoch {}", outcome->epoch) : outcome.error().message());
  const Tick end = model_->now();
  if (!outcome) {
    if (io_has_failed()) {
      // Whether its record counts, the next open tells.
      if (!request.checkpoint.empty())
        leave_undecided(checkpoints_[request.checkpoint], start, end);
      if (!request.refpoint.empty()) leave_undecided(refpoints_[request.refpoint], start, end);
    } else {
      checkpoints_.erase(request.checkpoint);
      refpoints_.erase(request.refpoint);
    }
    if (outcome.error().kind() != ErrorKind::in_use && !explained(outcome.error())) {
      violation("cut: " + outcome.error().message());
    }
    co_return;
  }
  flushed_ = std::max(flushed_, start);
  for (auto* points : {&checkpoints_, &refpoints_}) {
    for (auto& [name, made] : *points) {
      if (name != request.checkpoint && name != request.refpoint) continue;
      made.cut_end = end;
      made.existence = Existence::certain;
      snapshot(made, start, end);
      if (outcome->refpoint && points == &refpoints_) made.nonce = outcome->refpoint->nonce;
    }
  }
}

/// A cut in two phases, under a lease that may be too short. Nothing that began behind the closed
/// gate can be part of it.
Task<> VolumeWorld::do_group_cut() {
  if (checkpoints_.size() + refpoints_.size() > 12) co_return;
  disk::CutRequest request;
  request.checkpoint = fmt::format("g{}", ++names_);
  const Duration lease = std::chrono::milliseconds(random_.between(1, 50));
  const Tick start = model_->now();
  const auto ticket = co_await volume_->begin_cut(request, lease);
  if (!ticket) {
    if (ticket.error().kind() != ErrorKind::in_use && !explained(ticket.error())) {
      violation("begin_cut: " + ticket.error().message());
    }
    co_return;
  }
  const Tick closed = model_->now();
  Point point{.cut_start = start, .cut_end = closed, .size = size_};
  snapshot(point, start, closed);
  checkpoints_[request.checkpoint] = point;
  co_await loop_->sleep(std::chrono::milliseconds(random_.below(60)));
  const auto outcome = co_await volume_->commit_cut(*ticket, {});
  if (!outcome) {
    if (!io_has_failed()) checkpoints_.erase(request.checkpoint);
    if (outcome.error().kind() != ErrorKind::timed_out && !explained(outcome.error())) {
      violation("commit_cut: " + outcome.error().message());
    }
    co_return;
  }
  flushed_ = std::max(flushed_, start);
  checkpoints_[request.checkpoint].existence = Existence::certain;
}

Task<> VolumeWorld::do_release() {
  const std::string name = pick_point(checkpoints_);
  if (name.empty()) co_return;
  checkpoints_[name].existence = Existence::leaving;
  const auto done = co_await volume_->release_checkpoint(name);
  tell("release {}: {}", name, done ? "done" : done.error().message());
  if (done) {
    checkpoints_.erase(name);
  } else {
    if (done.error().kind() == ErrorKind::in_use) checkpoints_[name].existence = Existence::certain;
    if (done.error().kind() != ErrorKind::in_use && !explained(done.error())) {
      violation("release: " + done.error().message());
    }
  }
}

Task<> VolumeWorld::do_convert() {
  const std::string name = pick_point(checkpoints_);
  if (name.empty()) co_return;
  const std::string refpoint = fmt::format("r{}", ++names_);
  checkpoints_[name].existence = Existence::leaving;
  converting_[name] = refpoint;
  const auto done = co_await volume_->convert_checkpoint(name, refpoint);
  tell("convert {} to {}: {}", name, refpoint, done ? "done" : done.error().message());
  if (done) {
    converting_.erase(name);
    refpoints_[refpoint] = checkpoints_[name];
    refpoints_[refpoint].existence = Existence::certain;
    refpoints_[refpoint].nonce = done->nonce;
    checkpoints_.erase(name);
  } else if (done.error().kind() == ErrorKind::in_use) {
    converting_.erase(name);
    checkpoints_[name].existence = Existence::certain;
  } else if (!explained(done.error())) {
    violation("convert: " + done.error().message());
  }
}

Task<> VolumeWorld::do_delete_refpoint() {
  const std::string name = pick_point(refpoints_);
  if (name.empty()) co_return;
  refpoints_[name].existence = Existence::leaving;
  const auto done = co_await volume_->delete_refpoint(name);
  if (done) {
    refpoints_.erase(name);
  } else if (!explained(done.error())) {
    violation("delete refpoint: " + done.error().message());
  }
}

Task<> VolumeWorld::do_read_checkpoint() {
  const std::string name = pick_point(checkpoints_);
  if (name.empty()) co_return;
  co_await verify_checkpoint(name);
}

/// Reads all of a checkpoint's followed sectors and holds them against what it may be; what is seen
/// is what it is from now on.
Task<> VolumeWorld::verify_checkpoint(std::string name) {
  const auto reader = volume_->read_checkpoint(name);
  if (!reader) {
    const bool lost = reader.error().kind() == ErrorKind::precondition &&
                      (tight_ || checkpoints_[name].may_be_lost);
    if (!lost && !explained(reader.error()))
      violation("read_checkpoint: " + reader.error().message());
    co_return;
  }
  AlignedBuffer content(block_size_);
  for (const std::uint64_t block : active_blocks_) {
    const std::uint64_t offset = block * block_size_;
    if (offset >= (*reader)->info().size) continue;
    const std::uint64_t length =
        std::min<std::uint64_t>(block_size_, (*reader)->info().size - offset);
    const auto read = co_await (*reader)->read(offset, content.first(length));
    if (!read) {
      if (!explained(read.error())) violation("checkpoint read: " + read.error().message());
      co_return;
    }
    const auto point = checkpoints_.find(name);
    if (point == checkpoints_.end()) co_return;
    for (std::uint64_t at = 0; at < length; at += model_sector) {
      const std::uint64_t sector = (offset + at) / model_sector;
      if (!model_->follows(sector)) continue;  // the volume has grown
      const Value value = read_sector(sector, content.bytes().subspan(at, model_sector));
      Possible& possible = point->second.content[sector];
      // Live blocks that nobody holds are the data file's; see do_read.
      const bool unsure = io_has_failed();
      if (std::ranges::find(possible, value) == possible.end() && !unsure) {
        violation(
            fmt::format("checkpoint {} (cut at {} to {}) gives value {} in sector {}; possible: "
                        "{}; it has had: {}",
                        name, point->second.cut_start, point->second.cut_end, value, sector,
                        fmt::join(possible, " "), model_->describe(sector)));
      }
      if (!unsure) possible = {value};
    }
  }
}

Task<> VolumeWorld::do_changes() {
  const std::string since = pick_point(refpoints_);
  if (since.empty()) co_return;
  disk::ChangesRequest request;
  request.since = since;
  request.extents_max = random_.between(1, 8);
  const bool of_original = refpoints_[since].of_original;
  const auto page = co_await volume_->changes(request);
  if (of_original ? page.has_value() : !page && !explained(page.error())) {
    violation("changes: " + (page ? "of a point of the original" : page.error().message()));
  }
}

/// A reference point is its nonce: another of the same name is another one (rule 9).
Task<> VolumeWorld::do_wrong_nonce() {
  const std::string since = pick_point(refpoints_);
  if (since.empty()) co_return;
  disk::ChangesRequest request;
  request.since = since;
  request.nonce = random_.id();
  const auto page = co_await volume_->changes(request);
  if (page || page.error().kind() != ErrorKind::full_backup_required) {
    violation(fmt::format("changes since {} with another nonce were answered", since));
  }
}

// --- Alone: revert and resize.

Task<> VolumeWorld::do_revert() {
  const std::string name = pick_point(checkpoints_);
  if (name.empty() || violation_) co_return;
  co_await verify_checkpoint(name);  // pins its content
  if (violation_ || !checkpoints_.contains(name) || tight_ || checkpoints_[name].may_be_lost)
    co_return;
  for (const auto& [sector, possible] : checkpoints_[name].content) {
    if (possible.size() != 1) co_return;  // it could not be read: I/O has failed
  }
  before_revert_.clear();
  const Tick start = model_->now();
  for (const std::uint64_t sector : model_->sectors())
    before_revert_[sector] = model_->possible(sector, start, start);
  reverting_ = name;
  for (const std::uint64_t sector : model_->sectors()) {
    const auto& content = checkpoints_[name].content[sector];
    const Value value = sector * model_sector < checkpoints_[name].size && !content.empty()
                            ? content.front()
                            : zeros;
    model_->submit(sector, 1, value, start, true);
  }
  for (const std::uint64_t block : active_blocks_) touches_[block].push_back({.submitted = start});
  tell("revert to {} begins", name);
  if (random_.one_in(2)) dies_at_ = loop_->steps() + random_.below(300);
  const auto done = co_await volume_->revert(name);
  tell("revert to {}: {}", name, done ? "done" : done.error().message());
  if (!done) {
    if (!explained(done.error())) violation("revert: " + done.error().message());
    AlignedBuffer probe(4096);
    const auto serves = co_await volume_->read(0, probe.bytes());
    if (serves) reverting_.reset();  // it never began; else the next open decides
    co_return;
  }
  reverting_.reset();
  checkpoints_[name].durability = disk::Durability::durable;  // so that it could be rolled forward
  const Tick end = model_->now();
  for (const std::uint64_t sector : model_->sectors()) {
    model_->acknowledge(sector, 1, start, end);
  }
  flushed_ = std::max(flushed_, end);
}

Task<> VolumeWorld::do_resize() {
  // Only growth by whole blocks beyond what is followed, and back: the followed sectors keep their
  // content.
  const std::uint64_t grown = size_ + region;
  const auto done = co_await volume_->resize(grown);
  if (!done && !explained(done.error())) violation("resize: " + done.error().message());
  if (done && volume_->info().size != grown) violation("resize: the size is another one");
  if (done) host_.probes().hit("resized");
}

// --- Verification, with nothing in flight.

Task<> VolumeWorld::verify() {
  if (reverting_) co_return;  // it failed: nothing is answered until the next open
  co_await verify_live(false);
  co_await verify_points(false);
  if (io_has_failed())
    co_return;  // what the kernel dropped nobody has tracked; the next open finds out
  for (const auto& [since, point] : refpoints_) {
    if (violation_) co_return;
    if (point.existence != Existence::certain) continue;
    co_await verify_changes(since, "");
    const std::string until = pick_point(checkpoints_);
    if (!until.empty() && checkpoints_[until].cut_start > point.cut_end &&
        !checkpoints_[until].may_be_lost) {
      co_await verify_changes(since, until);
    }
  }
}

Task<> VolumeWorld::verify_live(bool reopened) {
  const bool after_power_loss = reopened && power_was_lost_;
  const Tick now = model_->now();
  AlignedBuffer content(block_size_);
  bool all_old = true;
  bool all_reverted = true;
  for (const std::uint64_t block : active_blocks_) {
    const std::uint64_t offset = block * block_size_;
    const std::uint64_t length = std::min<std::uint64_t>(block_size_, size_ - offset);
    const auto read = co_await volume_->read(offset, content.first(length));
    if (!read) {
      if (!explained(read.error())) violation("read: " + read.error().message());
      co_return;
    }
    for (std::uint64_t at = 0; at < length; at += model_sector) {
      const std::uint64_t sector = (offset + at) / model_sector;
      const Value value = read_sector(sector, content.bytes().subspan(at, model_sector));
      const bool dropped = io_has_failed();
      const Tick from = after_power_loss || dropped || (reopened && sync_had_failed_)
                            ? std::min(flushed_, now)
                            : now;
      const bool reverted = reverting_ && reopened &&
                            !checkpoints_[*reverting_].content[sector].empty() &&
                            checkpoints_[*reverting_].content[sector].front() == value;
      // The filling of a block may be among what the kernel dropped; beneath it lies anything.
      const bool fill_dropped = dropped && !reopened;
      if (!reverted && !fill_dropped && !model_->is_possible(sector, value, from, now)) {
        violation(fmt::format("after {}, sector {} has value {}; flushed at {}; it has had: {}",
                              after_power_loss ? "a power loss"
                              : reopened       ? "a restart"
                                               : "quiet",
                              sector, value, flushed_, model_->describe(sector)));
        co_return;
      }
      if (reverting_ && reopened) {
        const auto& old = before_revert_[sector];
        const auto& target = checkpoints_[*reverting_].content[sector];
        all_reverted = all_reverted && !target.empty() && value == target.front();
        all_old = all_old && (after_power_loss || sync_had_failed_ ||
                              std::ranges::find(old, value) != old.end());
      }
      if (reopened || dropped) model_->observe(sector, value, model_->now(), after_power_loss);
    }
  }
  if (reverting_ && reopened) {
    if (!all_old && !all_reverted)
      violation(fmt::format("the revert to {} was left half done", *reverting_));
    if (all_reverted) host_.probes().hit("revert_rolled_forward");
    reverting_.reset();
  }
  if (after_power_loss) flushed_ = model_->now();
  if (reopened) {
    power_was_lost_ = false;
    sync_had_failed_ = false;
  }
}

Task<> VolumeWorld::verify_points(bool reopened) {
  std::map<std::string, disk::CheckpointInfo> checkpoints;
  for (auto& info : volume_->checkpoints()) checkpoints[info.name] = info;
  std::map<std::string, disk::RefpointInfo> refpoints;
  for (auto& info : volume_->refpoints()) refpoints[info.name] = info;

  // What was under way when the process died has happened or not; as a whole.
  if (reopened) {
    for (const auto& [name, refpoint] : converting_) {
      if (checkpoints.contains(name) == refpoints.contains(refpoint)) {
        violation(fmt::format("the conversion of {} to {} was left half done", name, refpoint));
      }
      if (refpoints.contains(refpoint)) refpoints_[refpoint] = checkpoints_[name];
    }
    converting_.clear();
    for (auto* points : {&checkpoints_, &refpoints_}) {
      for (auto entry = points->begin(); entry != points->end();) {
        const std::string& name = entry->first;
        const bool exists =
            points == &checkpoints_ ? checkpoints.contains(name) : refpoints.contains(name);
        const bool undecided = entry->second.existence != Existence::certain;
        entry->second.existence = Existence::certain;
        entry = undecided && !exists ? points->erase(entry) : std::next(entry);
      }
    }
  }
  for (const auto& [name, info] : checkpoints) {
    if (!checkpoints_.contains(name))
      violation(fmt::format("there is a checkpoint {} that nobody made", name));
  }
  std::vector<std::string> lost;
  for (const auto& [name, point] : checkpoints_) {
    if (violation_) co_return;
    if (point.existence != Existence::certain) continue;
    if (!checkpoints.contains(name)) {
      violation(fmt::format("the checkpoint {} is gone", name));
      co_return;
    }
    if (checkpoints[name].lost) {
      if (!point.may_be_lost && !tight_)
        violation(fmt::format("the checkpoint {} was given up without need", name));
      lost.push_back(name);
      continue;
    }
    co_await verify_checkpoint(name);
  }
  for (const std::string& name : lost) {
    host_.probes().hit("volatile_checkpoint_lost");
    checkpoints_[name].existence = Existence::leaving;
    const auto released = co_await volume_->release_checkpoint(name);
    if (released) checkpoints_.erase(name);
  }
  for (const auto& [name, point] : refpoints_) {
    if (point.existence == Existence::certain && !refpoints.contains(name)) {
      violation(fmt::format("the reference point {} is gone", name));
    }
  }
}

/// A copy knows nothing of what has changed since its original's points.
Task<> VolumeWorld::verify_void(std::string since) {
  disk::ChangesRequest request;
  request.since = since;
  const auto page = co_await volume_->changes(request);
  if (page || page.error().kind() != ErrorKind::full_backup_required)
    violation(fmt::format("changes since {}, a point of the original, were answered", since));
  host_.probes().hit("point_of_original_refused");
}

/// Invariant 1, both ways, between a reference point and a checkpoint or now.
Task<> VolumeWorld::verify_changes(std::string since, std::string until) {
  if (refpoints_[since].of_original) co_return co_await verify_void(since);
  std::set<std::uint64_t> reported;
  bool exact = true;
  disk::ChangesRequest request;
  request.since = since;
  request.until = until;
  request.extents_max = random_.between(1, 100);
  const std::optional<Id128> nonce = refpoints_[since].nonce;
  if (nonce && random_.one_in(2)) request.nonce = nonce;
  for (;;) {
    const auto page = co_await volume_->changes(request);
    if (!page) {
      if (!explained(page.error()))
        violation(fmt::format("changes since {}: {}", since, page.error().message()));
      co_return;
    }
    exact = page->exact;
    for (const disk::Extent& extent : page->extents) {
      for (std::uint64_t at = extent.offset; at < extent.offset + extent.length;
           at += block_size_) {
        reported.insert(at / block_size_);
      }
    }
    request.offset = page->next_offset;
    if (page->complete) break;
  }
  const Point& point = refpoints_[since];
  const Tick end = until.empty() ? never : checkpoints_[until].cut_end;
  for (const std::uint64_t sector : model_->sectors()) {
    const std::uint64_t block = block_of_sector(sector);
    if (reported.contains(block)) continue;
    const Possible now = until.empty() ? model_->possible(sector, model_->now(), model_->now())
                                       : checkpoints_[until].content[sector];
    const auto then = point.content.find(sector);
    if (now.size() != 1 || then == point.content.end()) continue;
    if (std::ranges::find(then->second, now.front()) == then->second.end()) {
      violation(
          fmt::format("changes since {} until '{}' leave out block {}: sector {} was {} and is {}; "
                      "it has had: {}",
                      since, until, block, sector, fmt::join(then->second, " "), now.front(),
                      model_->describe(sector)));
      co_return;
    }
  }
  if (!exact) {
    host_.probes().hit("inexact_answer");
    co_return;
  }
  for (const std::uint64_t block : reported) {
    if (block * block_size_ >= size_) continue;  // grown since
    const auto& touches = touches_[block];
    const bool touched = std::ranges::any_of(touches, [&](const Touch& touch) {
      return touch.acknowledged >= point.cut_start && touch.submitted <= end;
    });
    if (!touched) {
      violation(fmt::format(
          "changes since {} until '{}' say exactly that block {} changed; nothing touched it",
          since, until, block));
    }
  }
}

SimulationResult simulate_volumes(std::uint64_t first, std::uint64_t count, bool tell) {
  SimulationResult result;
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    VolumeWorld world(seed, tell);
    result.violation = world.run();
    result.probes.merge(world.probes());
    ++result.runs;
    if (result.violation) break;
  }
  return result;
}

}  // namespace berth::sim
