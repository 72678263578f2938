// File and Directory: what the engine needs of a file system, and nothing more. The second seam.
//
// Reads and writes are awaited on the loop that the file was opened for; the calls of Directory and
// the ones marked "blocking" are short system calls made in place, or under offload() where they
// are not short. A file stays open, and its lock held, until the object goes *and* its last I/O has
// ended. Durability: a write is durable after a later sync() of the file; a name after a sync of
// its directory. The simulated twin (testing/sim_file.h) keeps exactly these promises and breaks
// everything else.
#pragma once

#include <coroutine>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace berth {

/// One operation on a file; lives in the waiting coroutine until it is resumed.
struct FileRequest {
  enum class Kind : std::uint8_t {
    read,      // fewer bytes than asked only at the end of the file
    write,     // all bytes or an error
    sync,      // data, and what is needed to read it again (fdatasync)
    sync_all,  // everything, the times too (fsync)
    punch,  // bytes become zero, space is given back (FALLOC_FL_PUNCH_HOLE); never changes the size
    zero,   // bytes become zero, space may stay allocated (FALLOC_FL_ZERO_RANGE); grows the file
  };
  Kind kind = Kind::read;
  std::byte* data = nullptr;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  std::int64_t result = 0;  // bytes moved, or -errno
  std::coroutine_handle<> waiter;
  std::uint64_t done = 0;  // for the loop: progress over short transfers
  FileRequest* next = nullptr;
};

constexpr bool is_sync(FileRequest::Kind kind) {
  return kind == FileRequest::Kind::sync || kind == FileRequest::Kind::sync_all;
}

/// What tells one data file from another, recorded at a clean close.
struct FileIdentity {
  std::uint64_t size = 0;
  std::uint64_t inode = 0;
  std::uint64_t device = 0;
  std::int64_t modified_ns = 0;  // mtime, since the epoch
  std::string device_id;         // WWN or UUID, for block devices; "" for files

  friend bool operator==(const FileIdentity&, const FileIdentity&) = default;
};

class File {
 public:
  virtual ~File() = default;

  /// Starts `request` at once; resumes its waiter when it has ended. The memory stays the caller's.
  virtual void submit(FileRequest& request) = 0;

  auto read(std::uint64_t offset, MutableBytes into) {
    return Transfer(*this, FileRequest::Kind::read, into.data(), offset, into.size());
  }
  auto write(std::uint64_t offset, Bytes from) {
    // The kernel reads `from` only; the request has one field for both directions.
    return Action(*this, FileRequest::Kind::write, const_cast<std::byte*>(from.data()), offset,
                  from.size());
  }
  auto sync_all() { return Action(*this, FileRequest::Kind::sync_all, nullptr, 0, 0); }
  auto sync() { return Action(*this, FileRequest::Kind::sync, nullptr, 0, 0); }
  auto punch(std::uint64_t offset, std::uint64_t length) {
    return Action(*this, FileRequest::Kind::punch, nullptr, offset, length);
  }
  auto zero(std::uint64_t offset, std::uint64_t length) {
    return Action(*this, FileRequest::Kind::zero, nullptr, offset, length);
  }

  /// Blocking. Bytes in the file (or block device).
  virtual Result<std::uint64_t> size() = 0;
  /// Blocking. Changes the size; new bytes are zero.
  virtual Result<void> truncate(std::uint64_t size) = 0;
  virtual Result<FileIdentity> identity() = 0;
  /// Blocking. The first offset at or after `offset` that may hold data (SEEK_DATA), or the size.
  virtual Result<std::uint64_t> next_data(std::uint64_t offset) = 0;
  /// Blocking. The first offset at or after `offset` that is a hole (SEEK_HOLE), or the size.
  virtual Result<std::uint64_t> next_hole(std::uint64_t offset) = 0;
  /// For messages.
  virtual const std::string& name() const = 0;

 private:
  class Awaiter {
   public:
    Awaiter(File& file, FileRequest::Kind kind, std::byte* data, std::uint64_t offset,
            std::uint64_t length)
        : file_(file) {
      request_.kind = kind;
      request_.data = data;
      request_.offset = offset;
      request_.length = length;
    }
    static bool await_ready() noexcept { return false; }
    void await_suspend(std::coroutine_handle<> waiter) {
      request_.waiter = waiter;
      file_.submit(request_);
    }

   protected:
    Error error() const;
    FileRequest request_;
    File& file_;
  };
  class Transfer : public Awaiter {
   public:
    using Awaiter::Awaiter;
    /// Bytes read.
    Result<std::size_t> await_resume() {
      if (request_.result < 0) [[unlikely]]
        return failure(error());
      return static_cast<std::size_t>(request_.result);
    }
  };
  class Action : public Awaiter {
   public:
    using Awaiter::Awaiter;
    Result<void> await_resume() {
      if (request_.result < 0) [[unlikely]]
        return failure(error());
      return {};
    }
  };
};

struct OpenOptions {
  bool create = false;     // make it if it is not there
  bool exclusive = false;  // with create: already_exists if it is there
  bool read_only = false;
  bool direct =
      false;          // O_DIRECT where the file system takes it; buffers and offsets in 4 KiB then
  bool lock = false;  // exclusive flock on the descriptor that does the I/O; in_use if it is taken
};

class Directory {
 public:
  virtual ~Directory() = default;

  // All blocking.
  virtual Result<std::unique_ptr<File>> open(const std::string& name, OpenOptions options) = 0;
  virtual Result<std::unique_ptr<Directory>> open_directory(const std::string& name,
                                                            bool create) = 0;
  virtual Result<bool> exists(const std::string& name) = 0;
  virtual Result<void> remove(const std::string& name) = 0;
  virtual Result<void> rename(const std::string& from, const std::string& to) = 0;
  virtual Result<std::vector<std::string>> list() = 0;
  /// Makes the names in it durable (fsync of the directory).
  virtual Result<void> sync() = 0;
  virtual const std::string& path() const = 0;
};

}  // namespace berth
