// FakeVolume: a disk::Volume in a vector, for the tests of what lies above the engine. Only tests
// include it.
//
// Obviously right and nothing more: a checkpoint is a copy, every block has the epoch of its last
// write. Nothing waits, but for a populate() that is told to.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/units.h"
#include "disk/volume.h"

namespace berth::machine {

class FakeVolume final : public disk::Volume {
 public:
  static constexpr std::uint32_t block_size = 4096;

  explicit FakeVolume(std::uint64_t size)
      : bytes_(size), epochs_(divide_up(size, block_size), 0), written_(epochs_.size(), false) {
    id_.bytes[0] = std::byte{0x42};
  }

  // What tests look at and set.
  std::uint64_t absent_bytes = 0;  // what populate() still has to copy
  bool changes_are_exact = true;
  std::optional<Error> read_error;  // of every read of a checkpoint
  std::size_t reads = 0;
  std::size_t flushes = 0;
  bool is_closed = false;
  std::map<std::string, std::size_t> readers;
  const std::vector<std::byte>& content() const { return bytes_; }

  Task<Result<void>> close() override {
    is_closed = true;
    co_return Result<void>{};
  }
  void abandon() override {}

  Task<Result<void>> read(std::uint64_t offset, MutableBytes into) override {
    ++reads;
    co_return copy_out(bytes_, offset, into);
  }
  Task<Result<void>> write(std::uint64_t offset, Bytes from) override {
    CO_TRY(check_range(bytes_, offset, from.size()));
    std::ranges::copy(from, bytes_.begin() + static_cast<std::ptrdiff_t>(offset));
    touch(offset, from.size(), true);
    co_return Result<void>{};
  }
  Task<Result<void>> flush() override {
    ++flushes;
    co_return Result<void>{};
  }
  Task<Result<void>> discard(std::uint64_t offset, std::uint64_t length) override {
    return zero(offset, length, false);
  }
  Task<Result<void>> zero(std::uint64_t offset, std::uint64_t length, bool fast_only) override {
    if (fast_only && offset % block_size != 0)
      co_return failure(ErrorKind::unsupported, "not fast");
    CO_TRY(check_range(bytes_, offset, length));
    std::fill_n(bytes_.begin() + static_cast<std::ptrdiff_t>(offset), length, std::byte{0});
    touch(offset, length, false);
    co_return Result<void>{};
  }
  Task<Result<std::vector<disk::AllocationExtent>>> allocation(std::uint64_t offset,
                                                               std::uint64_t length,
                                                               std::size_t extents_max) override {
    co_return allocation_of(bytes_, written_, offset, length, extents_max);
  }

  Task<Result<disk::CutTicket>> begin_cut(disk::CutRequest request, Duration /*lease*/) override {
    tickets_.emplace(++last_ticket_, std::move(request));
    co_return disk::CutTicket{last_ticket_};
  }
  Task<Result<disk::CutOutcome>> commit_cut(disk::CutTicket ticket,
                                            std::function<void()> writes_go_on) override {
    const auto found = tickets_.find(ticket.number);
    if (found == tickets_.end()) co_return failure(ErrorKind::timed_out, "the lease has expired");
    const disk::CutRequest request = found->second;
    tickets_.erase(found);
    if (writes_go_on) writes_go_on();
    co_return cut_now(request);
  }
  void abort_cut(disk::CutTicket ticket) override { tickets_.erase(ticket.number); }
  std::size_t open_cuts() const { return tickets_.size(); }
  Task<Result<void>> settle_group(Id128 group, bool committed) override {
    for (auto& [name, checkpoint] : checkpoints_) {
      if (checkpoint.info.group == group) checkpoint.info.provisional = false;
    }
    if (!committed) {
      std::erase_if(checkpoints_,
                    [&](const auto& entry) { return entry.second.info.group == group; });
    }
    co_return Result<void>{};
  }

  std::vector<disk::CheckpointInfo> checkpoints() const override {
    std::vector<disk::CheckpointInfo> list;
    for (const auto& [name, checkpoint] : checkpoints_) list.push_back(checkpoint.info);
    return list;
  }
  Result<std::unique_ptr<disk::CheckpointReader>> read_checkpoint(const std::string& name) override;
  Task<Result<void>> release_checkpoint(std::string name) override {
    if (!checkpoints_.contains(name))
      co_return failure(ErrorKind::not_found, "no checkpoint " + name);
    if (readers[name] > 0) co_return failure(ErrorKind::in_use, "somebody reads " + name);
    checkpoints_.erase(name);
    co_return Result<void>{};
  }
  Task<Result<disk::RefpointInfo>> convert_checkpoint(std::string name,
                                                      std::string refpoint) override {
    const auto found = checkpoints_.find(name);
    if (found == checkpoints_.end())
      co_return failure(ErrorKind::not_found, "no checkpoint " + name);
    const std::string& called = refpoint.empty() ? name : refpoint;
    const auto info = make_refpoint(called, found->second.info.epoch, found->second.info.group);
    checkpoints_.erase(found);
    co_return info;
  }
  Task<Result<void>> revert(std::string checkpoint) override {
    const auto found = checkpoints_.find(checkpoint);
    if (found == checkpoints_.end())
      co_return failure(ErrorKind::not_found, "no checkpoint " + checkpoint);
    ++epoch_;
    bytes_ = found->second.bytes;
    std::ranges::fill(epochs_, epoch_);
    co_return Result<void>{};
  }
  std::vector<disk::RefpointInfo> refpoints() const override {
    std::vector<disk::RefpointInfo> list;
    for (const auto& [name, refpoint] : refpoints_) list.push_back(refpoint);
    return list;
  }
  Task<Result<void>> delete_refpoint(std::string name) override {
    if (refpoints_.erase(name) == 0)
      co_return failure(ErrorKind::not_found, "no reference point " + name);
    co_return Result<void>{};
  }
  Task<Result<disk::ChangesPage>> changes(disk::ChangesRequest request) override;

  Task<Result<void>> resize(std::uint64_t size) override {
    bytes_.resize(size);
    epochs_.resize(divide_up(size, block_size), 0);
    written_.resize(epochs_.size(), false);
    co_return Result<void>{};
  }
  Task<Result<std::uint64_t>> populate(std::uint64_t bytes_max) override {
    const std::uint64_t copied = std::min(bytes_max, absent_bytes);
    absent_bytes -= copied;
    co_return copied;
  }
  disk::VolumeInfo info() const override {
    disk::VolumeInfo info;
    info.id = id_;
    info.size = bytes_.size();
    info.block_size = block_size;
    info.epoch = epoch_;
    info.checkpoints = checkpoints_.size();
    info.refpoints = refpoints_.size();
    return info;
  }

 private:
  friend class FakeReader;
  struct Checkpoint {
    disk::CheckpointInfo info;
    std::vector<std::byte> bytes;
    std::vector<disk::Epoch> epochs;
    std::vector<bool> written;
  };

  static Result<void> check_range(const std::vector<std::byte>& bytes, std::uint64_t offset,
                                  std::uint64_t length) {
    if (offset > bytes.size() || length > bytes.size() - offset) {
      return failure(ErrorKind::invalid_argument, "beyond the end");
    }
    return {};
  }
  static Result<void> copy_out(const std::vector<std::byte>& bytes, std::uint64_t offset,
                               MutableBytes into) {
    TRY(check_range(bytes, offset, into.size()));
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(offset), into.size(), into.begin());
    return {};
  }
  static Result<std::vector<disk::AllocationExtent>> allocation_of(
      const std::vector<std::byte>& bytes, const std::vector<bool>& written, std::uint64_t offset,
      std::uint64_t length, std::size_t extents_max) {
    TRY(check_range(bytes, offset, length));
    std::vector<disk::AllocationExtent> extents;
    const std::uint64_t end = offset + length;
    while (offset < end) {
      const std::uint64_t next = std::min(round_down(offset, block_size) + block_size, end);
      const bool hole = !written[offset / block_size];
      if (!extents.empty() && extents.back().hole == hole) {
        extents.back().length += next - offset;
      } else {
        if (extents.size() == extents_max) break;
        extents.push_back({.length = next - offset, .hole = hole, .zero = hole});
      }
      offset = next;
    }
    return extents;
  }

  void touch(std::uint64_t offset, std::uint64_t length, bool has_data) {
    for (std::uint64_t block = offset / block_size; block * block_size < offset + length; ++block) {
      epochs_[block] = epoch_;
      if (has_data) written_[block] = true;
    }
  }
  disk::RefpointInfo make_refpoint(const std::string& name, disk::Epoch epoch, Id128 group) {
    disk::RefpointInfo info;
    info.name = name;
    info.volume = id_;
    info.epoch = epoch;
    info.nonce.bytes[15] = static_cast<std::byte>(++last_nonce_);
    info.group = group;
    info.provisional = !group.is_nil();
    refpoints_[name] = info;
    return info;
  }
  Result<disk::CutOutcome> cut_now(const disk::CutRequest& request) {
    if (checkpoints_.contains(request.checkpoint) || refpoints_.contains(request.refpoint)) {
      return failure(ErrorKind::already_exists, "the name is taken");
    }
    disk::CutOutcome outcome;
    outcome.epoch = epoch_;
    outcome.gate_closed = std::chrono::microseconds(5);
    if (!request.checkpoint.empty()) {
      disk::CheckpointInfo info;
      info.name = request.checkpoint;
      info.epoch = epoch_;
      info.durability = request.durability;
      info.size = bytes_.size();
      info.group = request.group;
      info.provisional = !request.group.is_nil();
      checkpoints_[info.name] = {info, bytes_, epochs_, written_};
      outcome.checkpoint = info;
    }
    if (!request.refpoint.empty())
      outcome.refpoint = make_refpoint(request.refpoint, epoch_, request.group);
    ++epoch_;
    return outcome;
  }

  Id128 id_;
  std::vector<std::byte> bytes_;
  std::vector<disk::Epoch> epochs_;
  std::vector<bool> written_;
  disk::Epoch epoch_ = 1;
  std::uint64_t last_ticket_ = 0;
  std::uint8_t last_nonce_ = 0;
  std::map<std::uint64_t, disk::CutRequest> tickets_;
  std::map<std::string, Checkpoint> checkpoints_;
  std::map<std::string, disk::RefpointInfo> refpoints_;
};

class FakeReader final : public disk::CheckpointReader {
 public:
  FakeReader(FakeVolume& volume, const FakeVolume::Checkpoint& checkpoint)
      : volume_(volume), checkpoint_(checkpoint) {
    ++volume_.readers[checkpoint.info.name];
  }
  FakeReader(const FakeReader&) = delete;
  FakeReader& operator=(const FakeReader&) = delete;
  ~FakeReader() override { --volume_.readers[checkpoint_.info.name]; }

  const disk::CheckpointInfo& info() const override { return checkpoint_.info; }
  Task<Result<void>> read(std::uint64_t offset, MutableBytes into) override {
    ++volume_.reads;
    if (volume_.read_error) co_return failure(*volume_.read_error);
    co_return FakeVolume::copy_out(checkpoint_.bytes, offset, into);
  }
  Task<Result<std::vector<disk::AllocationExtent>>> allocation(std::uint64_t offset,
                                                               std::uint64_t length,
                                                               std::size_t extents_max) override {
    co_return FakeVolume::allocation_of(checkpoint_.bytes, checkpoint_.written, offset, length,
                                        extents_max);
  }

 private:
  FakeVolume& volume_;
  const FakeVolume::Checkpoint& checkpoint_;
};

inline Result<std::unique_ptr<disk::CheckpointReader>> FakeVolume::read_checkpoint(
    const std::string& name) {
  const auto found = checkpoints_.find(name);
  if (found == checkpoints_.end()) return failure(ErrorKind::not_found, "no checkpoint " + name);
  return std::make_unique<FakeReader>(*this, found->second);
}

inline Task<Result<disk::ChangesPage>> FakeVolume::changes(disk::ChangesRequest request) {
  const auto since = refpoints_.find(request.since);
  if (since == refpoints_.end()) {
    co_return failure(ErrorKind::full_backup_required, "no reference point " + request.since);
  }
  if (request.nonce && *request.nonce != since->second.nonce) {
    co_return failure(ErrorKind::full_backup_required, "another nonce");
  }
  const auto until = checkpoints_.find(request.until);
  if (!request.until.empty() && until == checkpoints_.end()) {
    co_return failure(ErrorKind::not_found, "no checkpoint " + request.until);
  }
  const auto& epochs = request.until.empty() ? epochs_ : until->second.epochs;
  const std::uint64_t size = request.until.empty() ? bytes_.size() : until->second.bytes.size();

  disk::ChangesPage page;
  page.exact = changes_are_exact;
  const std::uint64_t end = request.length > size - std::min(size, request.offset)
                                ? size
                                : request.offset + request.length;
  std::uint64_t offset = request.offset;
  while (offset < end) {
    const std::uint64_t next = std::min(round_down(offset, block_size) + block_size, end);
    if (epochs[offset / block_size] > since->second.epoch) {
      auto& extents = page.extents;
      if (!extents.empty() && extents.back().offset + extents.back().length == offset) {
        extents.back().length += next - offset;
      } else {
        if (extents.size() == request.extents_max) break;
        extents.push_back({offset, next - offset});
      }
    }
    offset = next;
  }
  page.next_offset = offset;
  page.complete = offset >= end;
  co_return page;
}

}  // namespace berth::machine
