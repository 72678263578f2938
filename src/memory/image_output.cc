#include "memory/image_output.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <liburing.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/aligned_buffer.h"
#include "memory/memory_file.h"

namespace berth::memory {
namespace {

constexpr std::size_t buffers = 16;
constexpr unsigned writes_max = 64;
// Small writes go to the disk together: it is told of them once.
constexpr unsigned batch_max = 16;

struct Write {
  std::uint64_t offset = 0;
  Bytes pages;  // none: this one is free
};

}  // namespace

struct ImageOutput::State {
  MemoryFile file;
  io_uring ring{};
  bool has_ring = false;
  AlignedBuffer memory{buffers * buffer_size};
  std::size_t current = 0;                     // the buffer that buffer() gives
  std::array<unsigned, buffers + 1> writes{};  // under way; the last counts those of others' memory
  std::array<Write, writes_max> slots;
  unsigned under_way = 0;
  unsigned unsubmitted = 0;  // of those
  std::size_t unsubmitted_bytes = 0;
  bool is_synced = false;
  Result<void> outcome;

  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    while (under_way > 0 && complete_one()) {
    }
    if (has_ring) ::io_uring_queue_exit(&ring);
  }

  Result<void> open(const std::string& path, std::uint64_t size);
  std::size_t buffer_of(Bytes pages) const {
    const auto at = static_cast<std::size_t>(pages.data() - memory.data());
    return pages.data() >= memory.data() && at < memory.size() ? at / buffer_size : buffers;
  }
  bool submit();
  /// Waits for a write; false if that cannot be done.
  bool complete_one();
  void complete(const Write& write, int result);
  void fail(std::unexpected<Error> error) {
    if (outcome) outcome = std::move(error);
  }
};

Result<void> ImageOutput::State::open(const std::string& path, std::uint64_t size) {
  constexpr int flags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW;
  file = {.path = path, .fd = Fd(::open(path.c_str(), flags, 0600)), .size = size};
  if (!file.fd) return errno_failure(errno, fmt::format("cannot make the memory image '{}'", path));
  int error = ::ftruncate(file.fd.get(), static_cast<off_t>(size)) == 0 ? 0 : errno;
  if (error == 0) error = -::io_uring_queue_init(writes_max, &ring, 0);
  has_ring = error == 0;
  if (has_ring) {
    // Refused where the file system has nothing but its cache, which does then.
    (void)::fcntl(file.fd.get(), F_SETFL, O_DIRECT);
    return {};
  }
  ::unlink(path.c_str());
  return errno_failure(error, fmt::format("cannot make the memory image '{}'", path));
}

bool ImageOutput::State::submit() {
  int submitted = 0;
  do {
    submitted = ::io_uring_submit(&ring);
  } while (submitted == -EINTR || submitted == -EAGAIN);
  if (submitted >= 0) {
    unsubmitted = 0;
    unsubmitted_bytes = 0;
    return true;
  }
  under_way -= std::exchange(unsubmitted, 0);
  fail(errno_failure(-submitted, fmt::format("cannot write '{}'", file.path)));
  return false;
}

bool ImageOutput::State::complete_one() {
  if (unsubmitted > 0 && !submit()) return false;
  io_uring_cqe* entry = nullptr;
  int error = 0;
  do {
    error = -::io_uring_wait_cqe(&ring, &entry);
  } while (error == EINTR);
  if (error != 0) {
    fail(errno_failure(error, fmt::format("cannot write '{}'", file.path)));
    return false;
  }
  Write& slot = slots.at(::io_uring_cqe_get_data64(entry));
  const int result = entry->res;
  ::io_uring_cqe_seen(&ring, entry);
  const Write write = std::exchange(slot, Write{});
  --under_way;
  complete(write, result);
  --writes.at(buffer_of(write.pages));
  return true;
}

void ImageOutput::State::complete(const Write& write, int result) {
  if (std::cmp_equal(result, write.pages.size())) return;
  if (result < 0 && result != -EINVAL && result != -EAGAIN && result != -EINTR) {
    fail(errno_failure(-result, fmt::format("cannot write '{}'", file.path)));
    return;
  }
  // Some file systems take the flag, and no such write.
  if (result == -EINVAL) (void)::fcntl(file.fd.get(), F_SETFL, 0);
  const auto done = static_cast<std::size_t>(std::max(result, 0)) / page_size * page_size;
  if (auto rest = file.write(write.offset + done, write.pages.subspan(done)); !rest)
    fail(std::unexpected(std::move(rest).error()));
}

ImageOutput::ImageOutput(std::unique_ptr<State> state) : state_(std::move(state)) {}
ImageOutput::~ImageOutput() = default;

Result<std::unique_ptr<ImageOutput>> ImageOutput::create(const std::string& path,
                                                         std::uint64_t size) {
  auto state = std::make_unique<State>();
  TRY(state->open(path, size));
  return std::unique_ptr<ImageOutput>(new ImageOutput(std::move(state)));
}

Result<MutableBytes> ImageOutput::buffer() {
  State& state = *state_;
  if (state.writes.at(state.current) > 0) state.current = (state.current + 1) % buffers;
  while (state.writes.at(state.current) > 0)
    if (!state.complete_one()) break;
  TRY(state.outcome);
  return state.memory.bytes().subspan(state.current * buffer_size, buffer_size);
}

Result<void> ImageOutput::write(std::uint64_t offset, Bytes pages) {
  State& state = *state_;
  while (state.under_way == writes_max)
    if (!state.complete_one()) break;
  TRY(state.outcome);
  const auto slot = std::ranges::find_if(state.slots, &Bytes::empty, &Write::pages);
  *slot = {.offset = offset, .pages = pages};
  io_uring_sqe* entry = ::io_uring_get_sqe(&state.ring);  // as many as there are slots
  ::io_uring_prep_write(entry, state.file.fd.get(), pages.data(),
                        static_cast<unsigned>(pages.size()), offset);
  ::io_uring_sqe_set_data64(entry, static_cast<std::uint64_t>(slot - state.slots.begin()));
  ++state.under_way;
  ++state.unsubmitted;
  state.unsubmitted_bytes += pages.size();
  ++state.writes.at(state.buffer_of(pages));
  state.is_synced = false;
  if (state.unsubmitted == batch_max || state.unsubmitted_bytes >= buffer_size) state.submit();
  return state.outcome;
}

Result<void> ImageOutput::settle() {
  while (state_->under_way > 0)
    if (!state_->complete_one()) break;
  return state_->outcome;
}

Result<void> ImageOutput::sync() {
  TRY(settle());
  if (state_->is_synced) return {};
  if (::fdatasync(state_->file.fd.get()) != 0)
    return errno_failure(errno, fmt::format("cannot sync the memory image '{}'", path()));
  state_->is_synced = true;
  return {};
}

const std::string& ImageOutput::path() const { return state_->file.path; }

}  // namespace berth::memory
