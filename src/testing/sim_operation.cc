#include "testing/sim_operation.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/units.h"
#include "testing/sim_host.h"
#include "testing/sim_loop.h"

namespace berth {
namespace {

using std::chrono::microseconds;
using Kind = FileRequest::Kind;

constexpr std::uint64_t direct_alignment = 4096;             // bytes
constexpr std::uint64_t in_pieces_length_max = 1024 * 1024;  // bytes; longer reads happen at once

constexpr std::size_t zeroed_pages_max = 1024;  // a longer zero always leaves a hole

std::uint32_t fault_kind(Kind kind) {
  switch (kind) {
    case Kind::read: return fault_on::read;
    case Kind::write: return fault_on::write;
    case Kind::sync:
    case Kind::sync_all: return fault_on::sync;
    case Kind::punch: return fault_on::punch;
    case Kind::zero: return fault_on::zero;
  }
  return 0;
}

/// Where an operation's bytes lie in the i-th of its pages.
struct PageRange {
  PageRange(const SimOperation& operation, std::size_t index) {
    page = operation.first_page() + index;
    const std::uint64_t start = page * sim_page_size;
    begin = operation.offset > start ? static_cast<std::size_t>(operation.offset - start) : 0;
    end = static_cast<std::size_t>(std::min<std::uint64_t>(operation.end() - start, sim_page_size));
    data_offset = start + begin - operation.offset;
  }
  std::uint64_t page;
  std::size_t begin;
  std::size_t end;
  std::uint64_t data_offset;  // in the request's memory
};

std::size_t page_count(const SimOperation& operation) {
  return divide_up(operation.end(), sim_page_size) - operation.first_page();
}

void find_sectors(SimOperation& operation) {
  operation.to_do.resize(page_count(operation));
  for (std::size_t i = 0; i < operation.to_do.size(); ++i) {
    const PageRange range(operation, i);
    operation.to_do[i] = sim_sectors_of(range.begin, range.end);
  }
}

}  // namespace

SimDescription::SimDescription(SimHost& of, SimLoop* on, std::shared_ptr<SimNode> to,
                               std::string at, OpenOptions as)
    : host(of), loop(on), node(std::move(to)), path(std::move(at)), options(as) {
  host.descriptions_.push_back(this);
}

SimDescription::~SimDescription() {
  host.release_lock(*this);
  std::erase(host.descriptions_, this);
}

void SimOperation::fire() { host.fire(*this); }

// --- The part of SimHost that performs operations.

Duration SimHost::latency(Kind kind) {
  const Duration usual = kind == Kind::read ? read_latency_
                         : is_sync(kind)    ? sync_latency_
                                            : write_latency_;
  const Duration takes =
      usual / 4 + Duration(random_.below(static_cast<std::uint64_t>(usual.count())));
  return random_.one_in(64) ? takes * 20 : takes;
}

void SimHost::schedule(SimOperation& operation, Duration after) {
  SimLoop* loop = operation.request != nullptr ? operation.description->loop : nullptr;
  if (loop == nullptr && !loops_.empty()) loop = loops_.front();
  if (loop != nullptr) loop->scheduler().schedule(operation, loop->now() + after);
}

SimOperation& SimHost::acquire(std::shared_ptr<SimDescription> description) {
  if (free_operations_.empty()) {
    operations_.push_back(std::make_unique<SimOperation>(*this));
    free_operations_.push_back(operations_.back().get());
  }
  SimOperation& operation = *free_operations_.back();
  free_operations_.pop_back();
  operation.description = std::move(description);
  ++operation.description->in_flight;
  operation.index = in_flight_.size();
  in_flight_.push_back(&operation);
  return operation;
}

void SimHost::release(SimOperation& operation) {
  operation.unschedule();
  in_flight_[operation.index] = in_flight_.back();
  in_flight_[operation.index]->index = operation.index;
  in_flight_.pop_back();
  operation.pages.clear();
  operation.to_do.clear();
  const std::shared_ptr<SimDescription> description = std::move(operation.description);
  if (--description->in_flight == 0 && description->closed) release_lock(*description);
  free_operations_.push_back(&operation);
}

int SimHost::refusal(const SimDescription& description, const FileRequest& request) const {
  const bool changes = request.kind != Kind::read && !is_sync(request.kind);
  if (changes && description.options.read_only) return EBADF;
  if (changes && read_only_) return EROFS;
  if (request.offset + request.length < request.offset) return EINVAL;
  const bool moves_bytes = request.kind == Kind::read || request.kind == Kind::write;
  if (moves_bytes && description.options.direct) {
    const auto address = reinterpret_cast<std::uintptr_t>(request.data);
    if ((address | request.offset | request.length) % direct_alignment != 0) return EINVAL;
  }
  return 0;
}

void SimHost::submit(const std::shared_ptr<SimDescription>& description, FileRequest& request) {
  SimOperation& operation = acquire(description);
  operation.request = &request;
  operation.kind = request.kind;
  operation.number = ++operation_count_;
  operation.offset = request.offset;
  operation.length = request.length;
  operation.sequence = disk_.sequence;
  operation.drop = operation.partly = operation.in_pieces = false;
  operation.error = refusal(*description, request);
  Duration takes = latency(request.kind);
  if (operation.error == 0) {
    const auto verdict = faults_.decide(fault_kind(request.kind), description->path, random_);
    operation.error = verdict.error;
    operation.partly = verdict.error != 0;
    takes += verdict.delay;
    if (verdict.error != 0) probes_.hit("operation_failed");
  } else {
    operation.drop = true;
  }
  if (!operation.drop) prepare(operation);
  const bool divisible = operation.to_do.size() > 1 || operation.length > sim_sector_size;
  if (options_.in_pieces && operation.error == 0 && divisible && !operation.to_do.empty() &&
      random_.one_in(4)) {
    operation.in_pieces = true;
    operation.rest = takes / 2;
    takes -= operation.rest;
  } else if (operation.kind == Kind::read) {
    operation.to_do.clear();
  }
  schedule(operation, takes);
}

/// A write's bytes are copied: its process may die before it ends, and the memory with it.
void SimHost::prepare(SimOperation& operation) {
  if (operation.length == 0) return;
  if (operation.kind == Kind::read && operation.length <= in_pieces_length_max)
    find_sectors(operation);
  if (operation.kind != Kind::write) return;
  find_sectors(operation);
  operation.pages.reserve(operation.to_do.size());
  for (std::size_t i = 0; i < operation.to_do.size(); ++i) {
    const PageRange range(operation, i);
    const SimPage& page = operation.pages.emplace_back(SimPage::uninitialised());
    std::memcpy(page.data() + range.begin, operation.request->data + range.data_offset,
                range.end - range.begin);
  }
}

void SimHost::fire(SimOperation& operation) {
  if (operation.in_pieces) {
    operation.in_pieces = false;
    probes_.hit(operation.kind == Kind::read ? "read_in_pieces" : "write_in_pieces");
    if (operation.kind == Kind::read) {
      read_piece(operation, false);
    } else {
      write_piece(operation, false);
    }
    schedule(operation, operation.rest);
    return;
  }
  finish(operation);
}

void SimHost::finish(SimOperation& operation) {
  const std::int64_t result = perform(operation);
  FileRequest* request = operation.request;
  SimLoop* loop = operation.description->loop;
  if (!loops_.empty()) {
    loops_.front()->scheduler().trace(mix64(operation.number) + operation.offset,
                                      static_cast<std::uint64_t>(result));
  }
  if (request == nullptr && !operation.drop) probes_.hit("dead_operation_landed");
  release(operation);
  if (request == nullptr) return;
  request->result = result;
  loop->post(request->waiter);
}

std::int64_t SimHost::perform(SimOperation& operation) {
  if (operation.drop) return -operation.error;
  switch (operation.kind) {
    case Kind::read: return perform_read(operation);
    case Kind::write: write_piece(operation, true); break;
    case Kind::sync:
    case Kind::sync_all: perform_sync(operation); break;
    case Kind::punch:
    case Kind::zero: perform_clear(operation); break;
  }
  if (operation.error != 0) return -operation.error;
  return operation.kind == Kind::write ? static_cast<std::int64_t>(operation.length) : 0;
}

std::int64_t SimHost::perform_read(SimOperation& operation) {
  if (operation.error != 0) return -operation.error;
  if (operation.request == nullptr) return 0;
  const SimContent& content = *operation.description->node->content;
  const std::uint64_t available =
      content.size() > operation.offset ? content.size() - operation.offset : 0;
  const std::uint64_t length = std::min(operation.length, available);
  if (operation.to_do.empty()) {
    content.read(operation.offset, {operation.request->data, static_cast<std::size_t>(length)});
  } else {
    read_piece(operation, true);
  }
  return static_cast<std::int64_t>(length);
}

/// Reads the sectors that are still to be read, or some of them.
void SimHost::read_piece(SimOperation& operation, bool everything) {
  if (operation.request == nullptr) return;
  const SimContent& content = *operation.description->node->content;
  const std::uint64_t end = std::min(operation.end(), content.size());
  std::uint64_t at = operation.offset;
  while (at < end) {
    const std::uint64_t next = std::min(round_down(at, sim_sector_size) + sim_sector_size, end);
    SimSectors& to_do = operation.to_do[at / sim_page_size - operation.first_page()];
    const auto sector = static_cast<SimSectors>(1U << (at % sim_page_size / sim_sector_size));
    if ((to_do & sector) != 0 && (everything || random_.one_in(2))) {
      content.read(at, {operation.request->data + (at - operation.offset),
                        static_cast<std::size_t>(next - at)});
      // The last sector may grow until the read ends.
      if (next % sim_sector_size == 0) to_do &= static_cast<SimSectors>(~sector);
    }
    at = next;
  }
}

bool SimHost::has_space_for(const SimOperation& operation, std::uint64_t page) {
  const SimDescription& description = *operation.description;
  if (pages_max_ == UINT64_MAX && file_pages_max_.empty()) return true;
  if (description.node->content->has_page(page)) return true;
  const auto limit = file_pages_max_.find(description.path);
  const bool has =
      disk_.pages_used < pages_max_ &&
      (limit == file_pages_max_.end() || description.node->content->pages_used() < limit->second);
  if (!has) probes_.hit("disk_full");
  return has;
}

/// Writes the sectors that are still to be written, or some of them. What is cut short writes a
/// part.
void SimHost::write_piece(SimOperation& operation, bool everything) {
  if (operation.length == 0) return;
  SimNode& node = *operation.description->node;
  for (std::size_t i = 0; i < operation.to_do.size(); ++i) {
    SimSectors sectors = operation.to_do[i];
    if (!everything || operation.partly) sectors &= static_cast<SimSectors>(random_.next());
    if (sectors == 0) continue;
    const PageRange range(operation, i);
    if (!has_space_for(operation, range.page)) {
      operation.error = ENOSPC;
      break;
    }
    refresh_page(operation, i);
    node.content->write({.page = range.page,
                         .begin = range.begin,
                         .end = range.end,
                         .sectors = sectors,
                         .operation = operation.number},
                        operation.pages[i]);
    operation.to_do[i] &= static_cast<SimSectors>(~sectors);
  }
  node.modified_ns = file_time();
}

/// A buffer that its owner has changed since: the disk may get either content.
void SimHost::refresh_page(SimOperation& operation, std::size_t index) {
  if (operation.request == nullptr) return;
  const PageRange range(operation, index);
  const std::byte* now = operation.request->data + range.data_offset;
  const std::size_t length = range.end - range.begin;
  if (std::memcmp(operation.pages[index].data() + range.begin, now, length) == 0) return;
  probes_.hit("write_buffer_changed_in_flight");
  if (random_.one_in(2)) return;
  operation.pages[index] = SimPage::uninitialised();
  std::memcpy(operation.pages[index].data() + range.begin, now, length);
}

void SimHost::perform_clear(SimOperation& operation) {
  SimNode& node = *operation.description->node;
  const bool zero = operation.kind == Kind::zero;
  SimRandom* chance = operation.partly ? &random_ : nullptr;
  if (zero && page_count(operation) <= zeroed_pages_max && random_.one_in(2)) {
    write_zeros(operation);
  } else {
    node.content->clear(operation.offset, operation.length, operation.number, chance);
  }
  if (zero && operation.error == 0 && operation.end() > node.content->size()) {
    node.content->truncate(operation.end(), operation.number);
  }
  node.modified_ns = file_time();
}

/// A zero that keeps its space, and takes it where there was none.
void SimHost::write_zeros(SimOperation& operation) {
  const SimPage zeros = SimPage::uninitialised();
  std::memset(zeros.data(), 0, sim_page_size);
  for (std::size_t i = 0; i < page_count(operation); ++i) {
    if (operation.partly && random_.one_in(2)) continue;
    const PageRange range(operation, i);
    if (!has_space_for(operation, range.page)) {
      operation.error = ENOSPC;
      return;
    }
    operation.description->node->content->write({.page = range.page,
                                                 .begin = range.begin,
                                                 .end = range.end,
                                                 .sectors = sim_sectors_of(range.begin, range.end),
                                                 .operation = operation.number},
                                                zeros);
  }
}

void SimHost::perform_sync(SimOperation& operation) {
  SimNode& node = *operation.description->node;
  if (operation.error != 0) {
    node.content->fail_sync(operation.sequence, random_, probes_);
    return;
  }
  const std::uint64_t size_before = node.content->durable_size();
  node.content->sync(operation.sequence);
  const bool keeps_time = operation.kind == Kind::sync_all || !options_.lazy_modified_time ||
                          node.content->durable_size() != size_before || random_.one_in(2);
  if (keeps_time) node.durable_modified_ns = node.modified_ns;
}

/// The process of this operation is dead. Most of what it had submitted happens all the same.
void SimHost::orphan(SimOperation& operation) {
  operation.request = nullptr;
  const bool changes = operation.kind != Kind::read && !is_sync(operation.kind);
  if (!changes || operation.drop || random_.one_in(3)) {
    if (changes) probes_.hit("death_dropped_operation");
    release(operation);
    return;
  }
  if (random_.one_in(2)) {
    operation.partly = true;
    probes_.hit("death_tore_operation");
  }
  if (random_.one_in(2)) schedule(operation, microseconds(random_.below(20'000)));
}

/// A copy of another host's operation, as that of a dead process.
void SimHost::adopt(const SimOperation& original,
                    const std::shared_ptr<SimDescription>& description) {
  SimOperation& copy = acquire(description);
  copy.request = nullptr;
  copy.kind = original.kind;
  copy.number = original.number;
  copy.offset = original.offset;
  copy.length = original.length;
  copy.sequence = original.sequence;
  copy.error = original.error;
  copy.drop = original.drop;
  copy.partly = original.partly;
  copy.in_pieces = false;
  copy.pages = original.pages;
  copy.to_do = original.to_do;
  if (original.request != nullptr) orphan(copy);
}

}  // namespace berth
