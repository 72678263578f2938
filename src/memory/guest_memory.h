// The memory of a running QEMU that has the preload and serves its channel, seen from outside: of
// which files it is, which of its pages are its own, what is in them.
//
// Blocking: on a worker thread, one call at a time. What is seen holds while the machine stands
// still, which is the caller's business. The process is held by its memory, not by its number.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <sys/types.h>

#include "base/bytes.h"
#include "base/result.h"
#include "memory/dirty_scan.h"
#include "memory/memory_channel.h"
#include "memory/memory_file.h"
#include "memory/process_maps.h"

namespace berth::memory {

struct GuestProcess {
  pid_t pid = 0;
  std::string memory_file;  // its memory object, or the template that it is a clone of
  std::string channel;      // path of the socket that its preload serves
};

class GuestMemory {
 public:
  /// `disconnected` or `not_found` if the process has ended or has no channel; `precondition` if
  /// its memory is not mapped yet, or is of another file.
  static Result<std::unique_ptr<GuestMemory>> open(const GuestProcess& process);

  bool is_clone() const { return is_clone_; }
  std::uint64_t size() const { return file_.size; }
  /// The memory object, to be written to, or the template, to be read.
  const MemoryFile& file() const { return file_; }
  /// MemoryChannel::map(), over a connection of its own: whoever is silent is hung up on.
  Result<void> map(const Fd& file, std::span<const PageRange> ranges);
  ProcessMaps& maps() { return maps_; }
  bool is_in_memory(const Mapping& mapping) const {
    return mapping.address >= address_ && mapping.address < address_ + file_.size;
  }
  std::uint64_t address() const { return address_; }
  pid_t pid() const { return process_.pid; }

  /// A piece of the memory, and the file that it is mapped from, where its offset is the same.
  struct Piece {
    PageRange range;
    dev_t device = 0;
    ino_t inode = 0;
    bool is_shared = false;
  };
  /// Looks at how it is mapped now: pieces in order, which make up the whole. `precondition` where
  /// somebody else has taken a hand in it. The functions below are about the memory as it was
  /// mapped then.
  Result<void> look();
  const std::vector<Piece>& pieces() const { return pieces_; }
  bool is_of_its_file(const Piece& piece) const;

  /// The pages that are the process's alone: which it has written to where it is mapped privately.
  /// In order and merged.
  Result<std::vector<PageRange>> private_pages() const;
  /// Those of them that are not swapped out.
  Result<std::uint64_t> private_bytes_present() const;
  /// The pages of a piece that are in the process's page table, whosever they are.
  Result<std::vector<PageRange>> present_pages(const Piece& piece) const;
  /// Where the memory object has something, as far as it is mapped: none of a clone.
  Result<std::vector<PageRange>> object_pages() const;
  /// As the machine sees it. A hole of the memory object stays one.
  Result<void> read(std::uint64_t offset, MutableBytes into) const;

 private:
  GuestMemory(GuestProcess process, ProcessMaps maps);
  enum class Whose : std::uint8_t { anybodys, the_process };
  Result<void> scan(const Piece& piece, Whose whose, std::uint64_t any_of,
                    std::vector<PageRange>& found) const;
  Result<void> read_process(std::uint64_t offset, MutableBytes into) const;

  GuestProcess process_;
  ProcessMaps maps_;
  MemoryFile file_;
  Fd pagemap_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
  std::uint64_t address_ = 0;
  bool is_clone_ = false;
  std::vector<Piece> pieces_;
};

}  // namespace berth::memory
