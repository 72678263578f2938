// probes.h: what files can do in the state directory: holes, zeroes, O_DIRECT, shared blocks.

#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/aligned_buffer.h"
#include "base/fd.h"
#include "base/units.h"
#include "machine/host/probes.h"
#include "machine/host/scratch_file.h"

namespace berth::machine {
namespace {

constexpr std::size_t file_size = MiB;
constexpr std::size_t block = 64 * KiB;
constexpr std::string_view local_remedy =
    "Put the state directory on ext4, XFS or Btrfs of a local disk";

Finding not_tried(const Error& error, const char* cost) {
  return unknown(error.message(), cost, "See state_directory");
}

/// The file has this content.
Result<void> fill(const Fd& file, char byte) {
  const std::string content(file_size, byte);
  const ssize_t count = ::pwrite(file.get(), content.data(), content.size(), 0);
  if (count == std::ssize(content)) return {};
  return errno_failure(count < 0 ? errno : ENOSPC, "cannot write a file to try this with");
}

std::string read_at(const Fd& file, std::size_t offset, std::size_t length) {
  std::string content(length, '?');
  const ssize_t count = ::pread(file.get(), content.data(), length, static_cast<off_t>(offset));
  content.resize(count < 0 ? 0 : static_cast<std::size_t>(count));
  return content;
}

/// Bytes that the file takes on the disk, once it is there.
std::uint64_t allocated(const Fd& file) {
  ::fsync(file.get());
  struct stat status{};
  return ::fstat(file.get(), &status) == 0 ? std::uint64_t(status.st_blocks) * 512 : 0;
}

/// One block of a full file, cleared by fallocate(2): what is wrong, or "".
Result<std::string> clear_block(const HostView& host, int mode, bool frees) {
  const Fd file = TRY(make_state_scratch_file(host.state_dir));
  TRY(fill(file, 'x'));
  const std::uint64_t before = allocated(file);
  if (::fallocate(file.get(), mode, block, block) != 0)
    return fmt::format("fallocate: {}", std::strerror(errno));
  if (read_at(file, block, block) != std::string(block, '\0')) return "the block is not zero";
  if (read_at(file, 0, block) != std::string(block, 'x') ||
      read_at(file, 2 * block, block) != std::string(block, 'x'))
    return "bytes beside the block have changed";
  if (frees && allocated(file) >= before) return "no space came back";
  return "";
}

}  // namespace

Finding probe_sparse_files(const HostView& host) {
  constexpr const char* cost = "a volume takes its whole size on the disk from the beginning";
  const auto file = make_state_scratch_file(host.state_dir);
  if (!file) return not_tried(file.error(), cost);
  constexpr off_t end = 64 * MiB;
  if (::ftruncate(file->get(), end) != 0 || ::pwrite(file->get(), "x", 1, end / 2) != 1)
    return missing(fmt::format("a file with a hole: {}", std::strerror(errno)), cost,
                   std::string(local_remedy));
  const std::uint64_t taken = allocated(*file);
  const off_t data = ::lseek(file->get(), 0, SEEK_DATA);
  if (taken >= static_cast<std::uint64_t>(end) / 2)
    return missing("holes take space", cost, std::string(local_remedy));
  if (data > 0 && data <= end / 2) return found("holes take no space, and SEEK_DATA finds data");
  return degraded("holes take no space, but SEEK_DATA does not see them",
                  "copies and exports read every byte", std::string(local_remedy));
}

Finding probe_punch_hole(const HostView& host) {
  constexpr const char* cost = "what guests discard, and deleted checkpoints, give no space back";
  const auto wrong = clear_block(host, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, true);
  if (!wrong) return not_tried(wrong.error(), cost);
  if (wrong->empty()) return found("a block was punched out, and its space came back");
  return missing(*wrong, cost, std::string(local_remedy));
}

Finding probe_zero_range(const HostView& host) {
  constexpr const char* cost = "zeroes are punched or written where one call would do";
  const auto wrong = clear_block(host, FALLOC_FL_ZERO_RANGE, false);
  if (!wrong) return not_tried(wrong.error(), cost);
  if (wrong->empty()) return found("a block was zeroed in one call");
  return missing(*wrong, cost, std::string(local_remedy));
}

Finding probe_direct_io(const HostView& host) {
  constexpr const char* cost =
      "volumes go through the page cache: guests' data is in memory twice, and slower under load";
  const auto file = make_state_scratch_file(host.state_dir);
  if (!file) return not_tried(file.error(), cost);
  AlignedBuffer page(AlignedBuffer::alignment);
  std::memset(page.data(), 'x', page.size());
  const int flags = ::fcntl(file->get(), F_GETFL);
  const bool written = ::fcntl(file->get(), F_SETFL, flags | O_DIRECT) == 0 &&
                       ::pwrite(file->get(), page.data(), page.size(), 0) == std::ssize(page);
  const int error = errno;
  if (written && ::pread(file->get(), page.data(), page.size(), 0) == std::ssize(page))
    return found("O_DIRECT reads and writes pages of 4 KiB");
  return missing(fmt::format("O_DIRECT: {}", std::strerror(error)), cost,
                 std::string(local_remedy) + "; tmpfs has it since Linux 6.6");
}

Finding probe_reflink(const HostView& host) {
  constexpr const char* cost = "`volume create --import` copies every byte, and takes its space";
  const auto source = make_state_scratch_file(host.state_dir);
  const auto target = make_state_scratch_file(host.state_dir);
  if (!source || !target) return not_tried((source ? target : source).error(), cost);
  if (const auto filled = fill(*source, 'x'); !filled) return not_tried(filled.error(), cost);
  if (::ioctl(target->get(), FICLONE, source->get()) != 0) {
    return missing(fmt::format("FICLONE: {}", std::strerror(errno)), cost,
                   "Put the state directory on XFS or Btrfs");
  }
  if (read_at(*target, 0, file_size) == std::string(file_size, 'x'))
    return found("a file was cloned");
  return missing("FICLONE made a file with other bytes", cost, "Check this file system");
}

}  // namespace berth::machine
