// For fuzz targets: a loop and files that are memory, done at once and in order.
#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "async/file.h"
#include "async/loop.h"
#include "base/bytes.h"
#include "base/checksum.h"

namespace berth::disk {

class MemoryLoop final : public Loop {
 public:
  Instant now() const override { return now_; }
  std::chrono::system_clock::time_point wall_time() const override { return {}; }
  void post(std::coroutine_handle<> waiter) override { ready_.push_back(waiter); }
  void add_timer(TimerRequest& timer) override {
    now_ = std::max(now_, timer.deadline);
    post(timer.waiter);
  }
  void remove_timer(TimerRequest& /*timer*/) override {}
  void submit_offload(OffloadRequest& request) override {
    request.run(request);
    post(request.waiter);
  }

  template <typename T>
  T run(Task<T> task) {
    std::optional<T> result;
    Task<> root = store(std::move(task), result);
    root.await_suspend(std::noop_coroutine()).resume();
    while (!result && !ready_.empty()) {
      const auto next = ready_.front();
      ready_.pop_front();
      next.resume();
    }
    CHECK(result.has_value());
    return std::move(*result);
  }

 private:
  template <typename T>
  static Task<> store(Task<T> task, std::optional<T>& into) {
    into.emplace(co_await task);
  }
  std::deque<std::coroutine_handle<>> ready_;
  Instant now_{};
};

/// Sparse bytes, in pages.
struct MemoryContent {
  static constexpr std::uint64_t page_size = 4096;
  std::uint64_t size = 0;
  std::map<std::uint64_t, std::array<std::byte, page_size>> pages;

  void write(std::uint64_t offset, Bytes bytes) {
    size = std::max<std::uint64_t>(size, offset + bytes.size());
    while (!bytes.empty()) {
      const std::uint64_t within = offset % page_size;
      const std::size_t length = std::min<std::uint64_t>(bytes.size(), page_size - within);
      auto [page, is_new] = pages.try_emplace(offset / page_size);
      std::memcpy(page->second.data() + within, bytes.data(), length);
      offset += length;
      bytes = bytes.subspan(length);
    }
  }
  std::size_t read(std::uint64_t offset, MutableBytes into) const {
    if (offset >= size) return 0;
    into = into.first(std::min<std::uint64_t>(into.size(), size - offset));
    std::memset(into.data(), 0, into.size());
    const std::uint64_t end = offset + into.size();
    for (auto page = pages.lower_bound(offset / page_size); page != pages.end(); ++page) {
      const std::uint64_t start = page->first * page_size;
      if (start >= end) break;
      const std::uint64_t from = std::max(start, offset);
      const std::uint64_t to = std::min(start + page_size, end);
      std::memcpy(into.data() + (from - offset), page->second.data() + (from - start), to - from);
    }
    return into.size();
  }
};

class MemoryFile final : public File {
 public:
  MemoryFile(Loop& loop, MemoryContent& content, std::string name)
      : loop_(loop), content_(content), name_(std::move(name)) {}

  void submit(FileRequest& request) override {
    switch (request.kind) {
      case FileRequest::Kind::read:
        request.result = static_cast<std::int64_t>(
            content_.read(request.offset, {request.data, request.length}));
        break;
      case FileRequest::Kind::write:
        content_.write(request.offset, {request.data, request.length});
        request.result = static_cast<std::int64_t>(request.length);
        break;
      case FileRequest::Kind::sync:
      case FileRequest::Kind::sync_all: request.result = 0; break;
      default: request.result = -EOPNOTSUPP; break;
    }
    loop_.post(request.waiter);
  }
  Result<std::uint64_t> size() override { return content_.size; }
  Result<void> truncate(std::uint64_t size) override {
    content_.size = size;
    content_.pages.erase(content_.pages.lower_bound((size + MemoryContent::page_size - 1) /
                                                    MemoryContent::page_size),
                         content_.pages.end());
    return {};
  }
  Result<FileIdentity> identity() override {
    return FileIdentity{.size = content_.size, .inode = 1};
  }
  Result<std::uint64_t> next_data(std::uint64_t offset) override {
    const auto page = content_.pages.lower_bound(offset / MemoryContent::page_size);
    if (page == content_.pages.end()) return content_.size;
    return std::max(offset, page->first * MemoryContent::page_size);
  }
  Result<std::uint64_t> next_hole(std::uint64_t offset) override {
    std::uint64_t page = offset / MemoryContent::page_size;
    while (content_.pages.contains(page)) ++page;
    return std::min(content_.size, std::max(offset, page * MemoryContent::page_size));
  }
  const std::string& name() const override { return name_; }

 private:
  Loop& loop_;
  MemoryContent& content_;
  std::string name_;
};

class MemoryDirectory final : public Directory {
 public:
  MemoryDirectory(Loop& loop, std::string path) : loop_(loop), path_(std::move(path)) {}

  Result<std::unique_ptr<File>> open(const std::string& name, berth::OpenOptions options) override {
    if (!files.contains(name) && !options.create) return errno_failure(ENOENT, name);
    return std::make_unique<MemoryFile>(loop_, files[name], name);
  }
  Result<std::unique_ptr<Directory>> open_directory(const std::string& /*name*/,
                                                    bool /*create*/) override {
    // One directory below this one; the caller gets a view of its files.
    if (below == nullptr) return errno_failure(ENOENT, path_);
    return std::make_unique<View>(*below);
  }
  Result<bool> exists(const std::string& name) override { return files.contains(name); }
  Result<void> remove(const std::string& name) override {
    files.erase(name);
    return {};
  }
  Result<void> rename(const std::string& /*from*/, const std::string& /*to*/) override {
    return errno_failure(EOPNOTSUPP, path_);
  }
  Result<std::vector<std::string>> list() override {
    std::vector<std::string> names;
    for (const auto& [name, content] : files) names.push_back(name);
    return names;
  }
  Result<void> sync() override { return {}; }
  const std::string& path() const override { return path_; }

  std::map<std::string, MemoryContent> files;
  MemoryDirectory* below = nullptr;

 private:
  class View final : public Directory {
   public:
    explicit View(MemoryDirectory& of) : of_(of) {}
    Result<std::unique_ptr<File>> open(const std::string& name,
                                       berth::OpenOptions options) override {
      return of_.open(name, options);
    }
    Result<std::unique_ptr<Directory>> open_directory(const std::string& name,
                                                      bool create) override {
      return of_.open_directory(name, create);
    }
    Result<bool> exists(const std::string& name) override { return of_.exists(name); }
    Result<void> remove(const std::string& name) override { return of_.remove(name); }
    Result<void> rename(const std::string& from, const std::string& to) override {
      return of_.rename(from, to);
    }
    Result<std::vector<std::string>> list() override { return of_.list(); }
    Result<void> sync() override { return of_.sync(); }
    const std::string& path() const override { return of_.path(); }

   private:
    MemoryDirectory& of_;
  };
  Loop& loop_;
  std::string path_;
};

/// The formats keep their checksums in the eight bytes at offset 8. A fuzzer cannot guess one: this
/// puts the right one in.
inline void seal(MutableBytes structure) {
  if (structure.size() < 16) return;
  store_le<std::uint64_t>(structure.data() + 8, 0);
  store_le<std::uint64_t>(structure.data() + 8, checksum64(structure));
}

/// Cuts an input into numbers and pieces; zeros when it is used up.
class FuzzInput {
 public:
  FuzzInput(const std::uint8_t* data, std::size_t size)
      : in_(Bytes(reinterpret_cast<const std::byte*>(data), size)) {}
  template <std::unsigned_integral T>
  T number() {
    return in_.le<T>();
  }
  /// At most `length_max` bytes, as many as two bytes say.
  Bytes piece(std::size_t length_max) {
    const std::size_t wanted = number<std::uint16_t>();
    return in_.raw(std::min({wanted, length_max, in_.remaining()}));
  }
  Bytes rest() { return in_.raw(in_.remaining()); }
  bool empty() const { return !in_.ok() || in_.remaining() == 0; }

 private:
  Reader in_;
};

}  // namespace berth::disk
