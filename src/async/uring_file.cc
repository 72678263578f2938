#include "async/uring_file.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>

#include <fcntl.h>
#include <liburing.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/block_device.h"
#include "base/aligned_buffer.h"
#include "base/units.h"

namespace berth {
namespace {

constexpr std::uint64_t offset_max = std::numeric_limits<std::int64_t>::max();
constexpr std::uint64_t transfer_max =
    GiB;  // of one operation; the kernel moves at most 2 GiB less a page
constexpr std::uint64_t direct_alignment = AlignedBuffer::alignment;
constexpr std::uint64_t zeros_size = 256 * KiB;

/// Written where a file system can neither zero nor punch. Never touched, it costs no memory but
/// the zero page.
alignas(AlignedBuffer::alignment) constinit std::array<std::byte, zeros_size> zeros{};

/// Ways to make bytes zero; each is tried when the one before it is not supported.
enum class Clearing : std::uint8_t { zero_range, punch_hole, write_zeros };

Result<std::uint64_t> size_of(int fd, const std::string& name) {
  struct stat status{};
  if (::fstat(fd, &status) != 0) return errno_failure(errno, fmt::format("cannot stat '{}'", name));
  if (!S_ISBLK(status.st_mode)) return static_cast<std::uint64_t>(status.st_size);
  std::uint64_t size = 0;
  if (::ioctl(fd, BLKGETSIZE64, &size) != 0) {
    return errno_failure(errno, fmt::format("cannot learn the size of '{}'", name));
  }
  return size;
}

}  // namespace

/// One operation in the kernel, on behalf of one request after the other.
class UringFile::Operation final : public UringOperation {
 public:
  explicit Operation(State& state) : state_(state) {}
  bool begin(FileRequest& request);
  void prepare(io_uring_sqe& entry) override;
  void complete(int result) override;

  Operation* next_free = nullptr;

 private:
  bool clears() const {
    return request_->kind == FileRequest::Kind::punch || request_->kind == FileRequest::Kind::zero;
  }
  void prepare_clearing(io_uring_sqe& entry);
  bool begin_clearing(Clearing clearing);
  void complete_transfer(std::uint64_t moved);
  bool answer(std::int64_t result);
  void finish(std::int64_t result);

  State& state_;
  FileRequest* request_ = nullptr;
  std::uint64_t length_ =
      0;  // of the request; less where a punch reaches beyond the end of the file
  Clearing clearing_ = Clearing::zero_range;
  bool retry_in_worker_ = false;
};

struct UringFile::State {
  State(UringLoop& on, Fd opened, std::string named)
      : loop(on), fd(std::move(opened)), name(std::move(named)) {}

  void submit(FileRequest& request);
  void finished(Operation& operation);

  UringLoop& loop;
  Fd fd;
  std::string name;
  bool block_device = false;
  bool read_only = false;
  bool direct = false;
  bool orphaned = false;  // its UringFile has gone: delete it after the last operation
  Clearing punch = Clearing::punch_hole;
  Clearing zero = Clearing::zero_range;
  std::size_t in_flight = 0;
  std::vector<std::unique_ptr<Operation>> operations;
  Operation* free = nullptr;
  FileRequest* queue_first = nullptr;  // waiting for an operation
  FileRequest* queue_last = nullptr;
};

void UringFile::State::submit(FileRequest& request) {
  request.done = 0;
  request.next = nullptr;
  if (free == nullptr) {
    if (operations.size() == operations_max) {
      (queue_first == nullptr ? queue_first : queue_last->next) = &request;
      queue_last = &request;
      return;
    }
    free = operations.emplace_back(std::make_unique<Operation>(*this)).get();
  }
  Operation& operation = *std::exchange(free, free->next_free);
  ++in_flight;
  if (!operation.begin(request)) finished(operation);
}

void UringFile::State::finished(Operation& operation) {
  while (queue_first != nullptr) {
    if (operation.begin(*std::exchange(queue_first, queue_first->next))) return;
  }
  operation.next_free = std::exchange(free, &operation);
  if (--in_flight == 0 && orphaned) delete this;
}

/// False when the request has ended without the kernel.
bool UringFile::Operation::begin(FileRequest& request) {
  request_ = &request;
  length_ = request.length;
  retry_in_worker_ = false;
  if (!is_sync(request.kind)) {
    // Also keeps clear of the offset -1, which would be the file's own position.
    const bool possible = request.offset <= offset_max && length_ <= offset_max - request.offset;
    if (length_ == 0 || !possible) return answer(possible ? 0 : -EINVAL);
    if (state_.read_only && request.kind != FileRequest::Kind::read) return answer(-EROFS);
    if (clears())
      return begin_clearing(request.kind == FileRequest::Kind::punch ? state_.punch : state_.zero);
  }
  state_.loop.start(*this);
  return true;
}

/// A punch never changes the size of a file, a zero grows it like a write. False as for begin().
bool UringFile::Operation::begin_clearing(Clearing clearing) {
  clearing_ = clearing;
  const bool punch = request_->kind == FileRequest::Kind::punch;
  const Clearing minds_the_size = punch ? Clearing::punch_hole : Clearing::zero_range;
  if (!state_.block_device && clearing != minds_the_size) {
    const Result<std::uint64_t> size = size_of(state_.fd.get(), state_.name);
    if (!size) return answer(-size.error().errno_value());
    if (punch) {
      length_ = std::min(length_, *size - std::min(*size, request_->offset));
      if (length_ == 0) return answer(0);
    } else if (request_->offset + length_ > *size) {
      clearing_ = Clearing::write_zeros;
    }
  }
  state_.loop.start(*this);
  return true;
}

bool UringFile::Operation::answer(std::int64_t result) {
  request_->result = result;
  state_.loop.post(request_->waiter);
  return false;
}

void UringFile::Operation::finish(std::int64_t result) {
  answer(result);
  state_.finished(*this);
}

void UringFile::Operation::prepare(io_uring_sqe& entry) {
  const int fd = state_.fd.get();
  const std::uint64_t offset = request_->offset + request_->done;
  const auto length = static_cast<unsigned>(std::min(length_ - request_->done, transfer_max));
  switch (request_->kind) {
    case FileRequest::Kind::read:
      ::io_uring_prep_read(&entry, fd, request_->data + request_->done, length, offset);
      break;
    case FileRequest::Kind::write:
      ::io_uring_prep_write(&entry, fd, request_->data + request_->done, length, offset);
      break;
    case FileRequest::Kind::sync: ::io_uring_prep_fsync(&entry, fd, IORING_FSYNC_DATASYNC); break;
    case FileRequest::Kind::sync_all: ::io_uring_prep_fsync(&entry, fd, 0); break;
    case FileRequest::Kind::punch:
    case FileRequest::Kind::zero: prepare_clearing(entry); break;
  }
  if (retry_in_worker_) entry.flags |= IOSQE_ASYNC;
}

void UringFile::Operation::prepare_clearing(io_uring_sqe& entry) {
  const int fd = state_.fd.get();
  const std::uint64_t offset = request_->offset + request_->done;
  const std::uint64_t length = length_ - request_->done;
  switch (clearing_) {
    case Clearing::zero_range:
      ::io_uring_prep_fallocate(&entry, fd, FALLOC_FL_ZERO_RANGE, static_cast<off_t>(offset),
                                static_cast<off_t>(length));
      break;
    case Clearing::punch_hole:
      ::io_uring_prep_fallocate(&entry, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                static_cast<off_t>(offset), static_cast<off_t>(length));
      break;
    case Clearing::write_zeros:
      ::io_uring_prep_write(&entry, fd, zeros.data(),
                            static_cast<unsigned>(std::min(length, zeros_size)), offset);
      break;
  }
}

void UringFile::Operation::complete(int result) {
  if (result == -EINTR || result == -EAGAIN) {
    retry_in_worker_ = true;
    return state_.loop.start(*this);
  }
  if (is_sync(request_->kind)) return finish(result);
  if (!clears() || clearing_ == Clearing::write_zeros) {
    return result < 0 ? finish(result) : complete_transfer(static_cast<std::uint64_t>(result));
  }
  // A block device says EINVAL to what is not in its sectors; a write can do it.
  if (result != -EOPNOTSUPP && result != -ENOSYS && !(state_.block_device && result == -EINVAL))
    return finish(result);
  const Clearing next =
      clearing_ == Clearing::zero_range ? Clearing::punch_hole : Clearing::write_zeros;
  if (result != -EINVAL)
    (request_->kind == FileRequest::Kind::punch ? state_.punch : state_.zero) = next;
  if (!begin_clearing(next)) state_.finished(*this);
}

/// Goes on after a short transfer. With O_DIRECT it goes on from a whole page, moving some bytes
/// again; one that does not get past its page has met the end of the file.
void UringFile::Operation::complete_transfer(std::uint64_t moved) {
  const std::uint64_t before = request_->done;
  const std::uint64_t after = before + moved;
  if (after == length_) return finish(static_cast<std::int64_t>(after));
  const std::uint64_t from = state_.direct ? round_down(after, direct_alignment) : after;
  if (from <= before) {
    return finish(request_->kind == FileRequest::Kind::read ? static_cast<std::int64_t>(after)
                                                            : -EIO);
  }
  request_->done = from;
  state_.loop.start(*this);
}

UringFile::UringFile(UringLoop& loop, Fd fd, std::string name)
    : state_(std::make_unique<State>(loop, std::move(fd), std::move(name))) {}

Result<std::unique_ptr<UringFile>> UringFile::adopt(UringLoop& loop, Fd fd, std::string name) {
  struct stat status{};
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fstat(fd.get(), &status) != 0)
    return errno_failure(errno, fmt::format("cannot stat '{}'", name));
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is neither a file nor a block device", name));
  }
  std::unique_ptr<UringFile> file(new UringFile(loop, std::move(fd), std::move(name)));
  file->state_->block_device = S_ISBLK(status.st_mode);
  file->state_->read_only = (flags & O_ACCMODE) == O_RDONLY;
  file->state_->direct = (flags & O_DIRECT) != 0;
  return file;
}

UringFile::~UringFile() {
  if (state_->in_flight == 0) return;
  state_->orphaned = true;
  state_.release();  // NOLINT(bugprone-unused-return-value): its last operation deletes it
}

void UringFile::submit(FileRequest& request) { state_->submit(request); }

const std::string& UringFile::name() const { return state_->name; }

bool UringFile::direct() const { return state_->direct; }

Result<std::uint64_t> UringFile::size() { return size_of(state_->fd.get(), state_->name); }

Result<void> UringFile::truncate(std::uint64_t size) {
  if (state_->block_device) {
    if (TRY(this->size()) == size) return {};
    return failure(
        ErrorKind::unsupported,
        fmt::format("'{}' is a block device; change its size with the tools that made it", name()));
  }
  if (size > offset_max) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("{} bytes are too many for '{}'", size, name()));
  }
  int outcome = 0;
  do {
    outcome = ::ftruncate(state_->fd.get(), static_cast<off_t>(size));
  } while (outcome != 0 && errno == EINTR);
  if (outcome != 0)
    return errno_failure(errno, fmt::format("cannot set the size of '{}' to {}", name(), size));
  return {};
}

Result<FileIdentity> UringFile::identity() {
  struct stat status{};
  if (::fstat(state_->fd.get(), &status) != 0)
    return errno_failure(errno, fmt::format("cannot stat '{}'", name()));
  FileIdentity identity;
  identity.size = TRY(size());
  if (state_->block_device) {
    identity.device_id = TRY(block_device_identity(status.st_rdev));
    return identity;
  }
  identity.inode = status.st_ino;
  identity.device = status.st_dev;
  identity.modified_ns = status.st_mtim.tv_sec * 1'000'000'000 + status.st_mtim.tv_nsec;
  return identity;
}

Result<std::uint64_t> UringFile::next_data(std::uint64_t offset) { return seek(offset, SEEK_DATA); }

Result<std::uint64_t> UringFile::next_hole(std::uint64_t offset) { return seek(offset, SEEK_HOLE); }

/// Where holes are not known (block devices, some file systems) all is data.
Result<std::uint64_t> UringFile::seek(std::uint64_t offset, int whence) {
  const std::uint64_t end = TRY(size());
  if (offset >= end) return end;
  if (!state_->block_device) {
    const off_t found = ::lseek(state_->fd.get(), static_cast<off_t>(offset), whence);
    if (found >= 0) return std::min(static_cast<std::uint64_t>(found), end);
    if (errno == ENXIO) return end;
    if (errno != EINVAL && errno != EOPNOTSUPP) {
      return errno_failure(errno, fmt::format("cannot look for holes in '{}'", name()));
    }
  }
  return whence == SEEK_DATA ? offset : end;
}

}  // namespace berth
