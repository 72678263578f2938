#include "testing/sim_host.h"

#include <algorithm>
#include <array>
#include <unordered_map>
#include <utility>

#include <fmt/format.h>

#include "testing/sim_file.h"
#include "testing/sim_loop.h"
#include "testing/sim_memory.h"
#include "testing/sim_operation.h"

namespace berth {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

std::vector<std::string> components(const std::string& path) {
  std::vector<std::string> names;
  std::size_t from = 0;
  while (from < path.size()) {
    const std::size_t to = std::min(path.find('/', from), path.size());
    if (to > from) names.push_back(path.substr(from, to - from));
    from = to + 1;
  }
  return names;
}

}  // namespace

SimHost::SimHost(std::uint64_t seed, SimHostOptions options)
    : random_(mix64(seed)), options_(options), boot_id_(random_.id().to_string()) {
  constexpr std::array<std::int64_t, 3> usual_us{20, 100, 500};
  const auto choose = [&](std::uint64_t factor) {
    const auto chosen = microseconds(random_.pick(usual_us) * static_cast<std::int64_t>(factor));
    return options_.latency != Duration{} ? options_.latency : Duration(chosen);
  };
  read_latency_ = choose(1);
  write_latency_ = choose(1);
  sync_latency_ = choose(random_.one_in(2) ? 1 : 20);
  if (random_.one_in(2)) file_time_granularity_ns_ = 4'000'000;  // a kernel tick
  root_ = make_node(true);
}

SimHost::~SimHost() {
  CHECK(loops_.empty());
  in_flight_.clear();
  operations_.clear();
  CHECK(descriptions_.empty());  // else a file outlives its host
}

Result<std::unique_ptr<Directory>> SimHost::open_directory(SimLoop& loop, const std::string& path) {
  std::shared_ptr<SimNode> node = root_;
  for (const std::string& name : components(path)) {
    auto& entry = node->entries[name];
    if (!entry) {
      entry = make_node(true);
      node->durable_entries[name] = entry;
    }
    if (!entry->is_directory()) {
      return failure(ErrorKind::invalid_argument, fmt::format("'{}' is not a directory", path));
    }
    node = std::shared_ptr<SimNode>(entry);
  }
  return std::make_unique<SimDirectory>(*this, loop, node, path);
}

std::unique_ptr<SharedMemoryStore> SimHost::shared_memory() {
  return std::make_unique<SimSharedMemoryStore>(*this);
}

Result<void> SimHost::copy_directory(const std::string& from, const std::string& to) {
  const auto source = root_->entries.find(from);
  if (source == root_->entries.end() || !source->second->is_directory())
    return failure(ErrorKind::not_found, fmt::format("there is no directory '{}'", from));
  const std::shared_ptr<SimNode> copy = copy_node(*source->second);
  root_->entries[to] = root_->durable_entries[to] = copy;
  return {};
}

std::shared_ptr<SimNode> SimHost::copy_node(const SimNode& node) {
  auto made = make_node(node.is_directory());
  for (const auto& [name, child] : node.entries) made->create_name(name, copy_node(*child));
  if (!node.is_directory()) {
    made->content->copy_from(*node.content, ++operation_count_);
    made->modified_ns = node.modified_ns;
    made->durable_modified_ns = file_time();
  }
  return made;
}

// --- Processes.

Instant SimHost::now() const { return loops_.empty() ? last_now_ : loops_.back()->now(); }

void SimHost::attach(SimLoop& loop) {
  SimScheduler& scheduler = loop.scheduler();
  scheduler.now = std::max(scheduler.now, last_now_);
  loops_.push_back(&loop);
  for (SimOperation* operation : in_flight_) {
    if (!operation->scheduled()) schedule(*operation, microseconds(random_.below(20'000)));
  }
}

void SimHost::detach(SimLoop& loop) {
  last_now_ = loop.now();
  std::erase(loops_, &loop);
  for (SimOperation* operation : in_flight_) {
    if (operation->request != nullptr) continue;  // another process's
    operation->unschedule();
    if (!loops_.empty()) schedule(*operation, microseconds(random_.below(20'000)));
  }
}

void SimHost::process_died(const SimLoop& loop) {
  for (SimDescription* description : descriptions_) {
    if (description->loop == &loop) description->closed = true;
  }
  bool in_flight = false;
  // Going backwards, the removal of one disturbs none that is still to come.
  for (std::size_t i = in_flight_.size(); i-- > 0;) {
    SimOperation& operation = *in_flight_[i];
    if (operation.request == nullptr || operation.description->loop != &loop) continue;
    in_flight = true;
    orphan(operation);
  }
  if (in_flight) probes_.hit("process_died_with_operations_in_flight");
  for (SimDescription* description : descriptions_) {
    if (description->loop == &loop && description->in_flight == 0) release_lock(*description);
  }
}

void SimHost::settle() {
  std::vector<SimOperation*> left;
  for (SimOperation* operation : in_flight_) {
    if (operation->request == nullptr) left.push_back(operation);
  }
  random_.shuffle(left);
  for (SimOperation* operation : left) finish(*operation);
}

bool SimHost::take_lock(const std::shared_ptr<SimDescription>& description) {
  SimNode& node = *description->node;
  if (const SimDescription* holder = node.lock_holder; holder != nullptr) {
    std::vector<SimOperation*> left;
    for (SimOperation* operation : in_flight_) {
      if (operation->description.get() == holder) left.push_back(operation);
    }
    const bool dead =
        holder->closed && std::ranges::all_of(left, [](const SimOperation* operation) {
          return operation->request == nullptr;
        });
    if (!dead || (options_.lock_lingers && random_.one_in(2))) {
      probes_.hit("lock_refused");
      return false;
    }
    probes_.hit("lock_waited_for_dead_operations");
    random_.shuffle(left);
    for (SimOperation* operation : left) finish(*operation);
    CHECK(node.lock_holder == nullptr);
  }
  node.lock_holder = description.get();
  return true;
}

void SimHost::release_lock(const SimDescription& description) {
  if (description.node->lock_holder == &description) description.node->lock_holder = nullptr;
}

// --- Power loss.

void SimHost::power_loss() {
  for (SimLoop* loop : loops_) loop->forget();
  for (SimDescription* description : descriptions_) description->closed = true;
  for (SimOperation* operation : in_flight_) operation->request = nullptr;
  probes_.hit(in_flight_.empty() ? "power_lost" : "power_lost_with_operations_in_flight");
  power_loss_of_disk();
  shared_memory_.clear();
  boot_id_ = random_.id().to_string();
}

void SimHost::power_loss_of_disk() {
  // What was in flight is one more version of what it touches.
  std::vector<SimOperation*> left = in_flight_;
  random_.shuffle(left);
  for (SimOperation* operation : left) {
    if (!is_sync(operation->kind)) perform(*operation);
    release(*operation);
  }
  for (SimDescription* description : descriptions_) release_lock(*description);
  const SimSurvival shared = SimSurvival::choose(random_, disk_.sequence);
  SimFates fates;
  root_->power_loss(random_.one_in(2) ? &shared : nullptr, disk_.sequence, random_, fates, probes_);
  count_fates(fates);
}

void SimHost::count_fates(const SimFates& fates) {
  std::uint64_t first_lost = UINT64_MAX;
  std::uint64_t last_survived = 0;
  for (const auto& [number, fate] : fates) {
    if ((fate & sim_fate_lost) != 0) first_lost = std::min(first_lost, number);
    if ((fate & sim_fate_survived) != 0) last_survived = std::max(last_survived, number);
    probes_.hit(fate == sim_fate_lost       ? "power_loss_lost_write"
                : fate == sim_fate_survived ? "power_loss_kept_write"
                                            : "power_loss_tore_write");
  }
  if (first_lost < last_survived) probes_.hit("power_loss_reordered_writes");
}

std::unique_ptr<SimHost> SimHost::clone_after(SimDeath death, std::uint64_t seed) const {
  auto clone = std::make_unique<SimHost>(seed, options_);
  clone->boot_id_ = boot_id_;
  clone->file_time_granularity_ns_ = file_time_granularity_ns_;
  clone->pages_max_ = pages_max_;
  clone->file_pages_max_ = file_pages_max_;
  clone->read_only_ = read_only_;
  clone->disk_.sequence = disk_.sequence;
  clone->last_now_ = now();
  clone->operation_count_ = operation_count_;
  SimClones nodes;
  clone->root_ = clone_tree(root_, clone->disk_, clone->inodes_, nodes);
  clone->inodes_ = inodes_;
  for (const auto& [name, memory] : shared_memory_) {
    auto copy = std::make_shared<AlignedBuffer>(memory->size());
    std::ranges::copy(memory->bytes(), copy->data());
    clone->shared_memory_[name] = std::move(copy);
  }
  std::unordered_map<const SimDescription*, std::shared_ptr<SimDescription>> descriptions;
  for (const SimOperation* operation : in_flight_) {
    auto& description = descriptions[operation->description.get()];
    const SimDescription& original = *operation->description;
    if (!description) {
      auto node = clone_tree(original.node, clone->disk_, clone->inodes_, nodes);
      description =
          std::make_shared<SimDescription>(*clone, nullptr, node, original.path, original.options);
      description->closed = true;
      if (original.node->lock_holder == &original) node->lock_holder = description.get();
    }
    clone->adopt(*operation, description);
  }
  descriptions.clear();
  if (death == SimDeath::power) clone->power_loss();
  return clone;
}

// --- For tests.

std::shared_ptr<SimNode> SimHost::find_path(const std::string& path) const {
  std::shared_ptr<SimNode> node = root_;
  for (const std::string& name : components(path)) {
    const auto found = node->entries.find(name);
    if (found == node->entries.end()) return nullptr;
    node = std::shared_ptr<SimNode>(found->second);
  }
  return node->is_directory() ? nullptr : node;
}

Result<std::vector<std::byte>> SimHost::peek(const std::string& path) const {
  const auto node = find_path(path);
  if (!node) return failure(ErrorKind::not_found, fmt::format("there is no file '{}'", path));
  std::vector<std::byte> bytes(node->content->size());
  node->content->read(0, bytes);
  return bytes;
}

Result<std::vector<std::byte>> SimHost::peek_durable(const std::string& path) const {
  const auto node = find_path(path);
  if (!node) return failure(ErrorKind::not_found, fmt::format("there is no file '{}'", path));
  std::vector<std::byte> bytes(node->content->durable_size());
  node->content->read_durable(0, bytes);
  return bytes;
}

Result<void> SimHost::corrupt(const std::string& path, std::uint64_t offset, std::size_t length) {
  const auto node = find_path(path);
  if (!node) return failure(ErrorKind::not_found, fmt::format("there is no file '{}'", path));
  node->content->corrupt(offset, length, random_);
  return {};
}

int SimHost::blocking_call(std::uint32_t kind, std::string_view what, const std::string& path,
                           bool changes) {
  if (blocking_hook_) blocking_hook_(what, path);
  if (!loops_.empty()) loops_.back()->scheduler().trace(kind, path.size());
  const int error = faults_.decide(kind, path, random_).error;
  if (error != 0) probes_.hit("blocking_call_failed");
  if (error == 0 && changes && read_only_) return EROFS;
  return error;
}

std::int64_t SimHost::file_time() const {
  const auto since_epoch = sim_wall_time(now()).time_since_epoch();
  const std::int64_t now_ns =
      std::chrono::duration_cast<std::chrono::nanoseconds>(since_epoch).count();
  return now_ns - now_ns % file_time_granularity_ns_;
}

std::string SimHost::describe() const {
  return fmt::format("{} operations in flight, {} open files", in_flight_.size(),
                     descriptions_.size());
}

}  // namespace berth
