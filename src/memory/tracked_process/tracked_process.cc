// A process that stands in for QEMU in tests: it maps a memory object and does to it what it is
// told. Commands come as lines on standard input, offsets and lengths in bytes of the memory
// object; each is answered with "ok" when it is done, or with what was wrong.
//
//   map PATH SIZE                      shared, for reading and writing
//   map-private PATH SIZE, map-read-only PATH SIZE
//   forbid-userfaultfd                 by seccomp, from now on
//   register                           for write protection, as the preload does; `map` first
//   address                            of the memory
//   store OFFSET LENGTH VALUE          CPU stores of one byte value
//   load OFFSET LENGTH                 CPU loads
//   receive OFFSET LENGTH VALUE        recv() from a socket into the memory: as data of a disk
//   comes read OFFSET LENGTH VALUE           read() from a file into the memory receive-vector
//   OFFSET LENGTH VALUE recvmsg(), page by page in descending order discard OFFSET LENGTH
//   MADV_DONTNEED punch OFFSET LENGTH                a hole in the file allocate OFFSET LENGTH
//   space in the file resize LENGTH                      of the file remap OFFSET LENGTH the same
//   piece of the file, mapped anew over the old mapping unmap OFFSET LENGTH again maps the whole
//   file a second time run THREADS SEED                   threads store and receive at random
//   places until `halt` halt                               ends when no thread writes any more rate
//   BYTES-PER-SECOND              of each thread of a later `run`; 0 for no limit environment NAME
//   its value
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "memory/write_protection.h"

namespace {

using namespace berth::memory;

constexpr std::size_t page_size = 4096;
constexpr std::size_t table_reach = 512 * page_size;  // what one page table maps
constexpr std::size_t transfer_max = 64 * 1024;       // fits into a socket's buffer

struct Problem {
  std::string what;
};

void expect(bool good, const std::string& what) {
  if (!good) throw Problem{what + ": " + std::strerror(errno)};
}

class SocketPair {
 public:
  SocketPair() { expect(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends_) == 0, "socketpair"); }
  SocketPair(const SocketPair&) = delete;
  SocketPair& operator=(const SocketPair&) = delete;
  ~SocketPair() {
    ::close(ends_[0]);
    ::close(ends_[1]);
  }

  void receive(unsigned char* into, std::size_t length, int value) const {
    const std::vector<char> bytes(std::min(length, transfer_max), static_cast<char>(value));
    while (length > 0) {
      const std::size_t piece = std::min(length, bytes.size());
      send(bytes, piece);
      const ssize_t got = ::recv(ends_[1], into, piece, MSG_WAITALL);
      expect(got == static_cast<ssize_t>(piece), "recv");
      into += piece;
      length -= piece;
    }
  }

  void receive_vector(unsigned char* into, std::size_t length, int value) const {
    if (length > transfer_max) throw Problem{"too long"};
    std::vector<iovec> pieces;
    for (std::size_t end = length; end > 0;) {
      const std::size_t start = (end - 1) / page_size * page_size;
      pieces.push_back({.iov_base = into + start, .iov_len = end - start});
      end = start;
    }
    send(std::vector<char>(length, static_cast<char>(value)), length);
    msghdr message{};
    message.msg_iov = pieces.data();
    message.msg_iovlen = pieces.size();
    expect(::recvmsg(ends_[1], &message, MSG_WAITALL) == static_cast<ssize_t>(length), "recvmsg");
  }

 private:
  void send(const std::vector<char>& bytes, std::size_t length) const {
    expect(::send(ends_[0], bytes.data(), length, 0) == static_cast<ssize_t>(length), "send");
  }
  int ends_[2] = {-1, -1};
};

void forbid_userfaultfd() {
  std::array<sock_filter, 4> filter = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog program{.len = filter.size(), .filter = filter.data()};
  expect(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
  expect(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0, "seccomp");
}

class TrackedMemory {
 public:
  void map(const std::string& path, std::size_t size) {
    open(path);
    size_ = size;
    // As QEMU aligns it.
    void* space =
        ::mmap(nullptr, size + table_reach, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    expect(space != MAP_FAILED, "mmap");
    auto* start = static_cast<unsigned char*>(space);
    start += -reinterpret_cast<std::uintptr_t>(start) % table_reach;
    memory_ = map_shared(start, MAP_FIXED, size, 0);
  }

  void map_read_only(const std::string& path, std::size_t size) {
    file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    expect(::mmap(nullptr, size, PROT_READ, MAP_SHARED, file_, 0) != MAP_FAILED, "mmap");
  }
  void map_private(const std::string& path, std::size_t size) {
    open(path);
    expect(::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file_, 0) != MAP_FAILED,
           "mmap");
  }

  void register_for_tracking() {
    const int uffd =
        static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
    expect(uffd >= 0, "userfaultfd");
    uffdio_api api{.api = UFFD_API, .features = tracking_features, .ioctls = 0};
    expect(::ioctl(uffd, UFFDIO_API, &api) == 0, "UFFDIO_API");
    uffdio_register registration{
        .range = {.start = reinterpret_cast<std::uintptr_t>(memory_), .len = size_},
        .mode = UFFDIO_REGISTER_MODE_WP,
        .ioctls = 0};
    expect(::ioctl(uffd, UFFDIO_REGISTER, &registration) == 0, "UFFDIO_REGISTER");
  }

  unsigned char* at(std::size_t offset, std::size_t length) const {
    if (offset > size_ || length > size_ - offset) throw Problem{"outside of the memory"};
    return memory_ + offset;
  }

  void store(std::size_t offset, std::size_t length, int value) const {
    std::memset(at(offset, length), value, length);
  }
  void load(std::size_t offset, std::size_t length) const {
    const volatile unsigned char* from = at(offset, length);
    for (std::size_t i = 0; i < length; i += page_size) (void)from[i];
  }
  void receive(std::size_t offset, std::size_t length, int value) const {
    SocketPair().receive(at(offset, length), length, value);
  }
  void receive_vector(std::size_t offset, std::size_t length, int value) const {
    SocketPair().receive_vector(at(offset, length), length, value);
  }
  void read(std::size_t offset, std::size_t length, int value) const {
    const int source = ::memfd_create("source", MFD_CLOEXEC);
    const std::vector<char> bytes(length, static_cast<char>(value));
    expect(::write(source, bytes.data(), length) == static_cast<ssize_t>(length), "write");
    expect(::pread(source, at(offset, length), length, 0) == static_cast<ssize_t>(length), "pread");
    ::close(source);
  }
  void advise(std::size_t offset, std::size_t length, int advice) const {
    expect(::madvise(at(offset, length), length, advice) == 0, "madvise");
  }
  void punch(std::size_t offset, std::size_t length) const {
    expect(::fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       static_cast<off_t>(offset), static_cast<off_t>(length)) == 0,
           "fallocate");
  }
  void remap(std::size_t offset, std::size_t length) const {
    map_shared(at(offset, length), MAP_FIXED, length, offset);
  }
  void resize(std::size_t size) const {
    expect(::ftruncate(file_, static_cast<off_t>(size)) == 0, "ftruncate");
  }
  void allocate(std::size_t offset, std::size_t length) const {
    expect(::fallocate(file_, 0, static_cast<off_t>(offset), static_cast<off_t>(length)) == 0,
           "fallocate");
  }
  static void crowd(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      const int protection = i % 2 == 0 ? PROT_READ : PROT_NONE;
      expect(
          ::mmap(nullptr, page_size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED,
          "mmap");
    }
  }
  const void* address() const { return memory_; }
  void unmap(std::size_t offset, std::size_t length) const {
    expect(::munmap(at(offset, length), length) == 0, "munmap");
  }
  void map_again() const { map_shared(nullptr, 0, size_, 0); }

  void set_rate(double bytes_per_second) { rate_ = bytes_per_second; }
  void run(unsigned threads, unsigned seed) {
    halted_ = false;
    for (unsigned i = 0; i < threads; ++i)
      threads_.emplace_back([this, seed, i] { write_at_random(seed + i); });
  }
  void halt() {
    halted_ = true;
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  void open(const std::string& path) {
    file_ = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    expect(file_ >= 0, "open");
  }

  unsigned char* map_shared(void* where, int flags, std::size_t size, std::size_t offset) const {
    void* memory = ::mmap(where, size, PROT_READ | PROT_WRITE, MAP_SHARED | flags, file_,
                          static_cast<off_t>(offset));
    expect(memory != MAP_FAILED, "mmap");
    return static_cast<unsigned char*>(memory);
  }

  void write_at_random(unsigned seed) const {
    std::minstd_rand random(seed);
    const SocketPair sockets;
    const std::size_t pages = size_ / page_size;
    const auto start = std::chrono::steady_clock::now();
    double written = 0;
    while (!halted_) {
      unsigned char* page = memory_ + (random() % pages) * page_size;
      const int value = static_cast<int>(random());
      if (random() % 16 == 0) {
        sockets.receive(page, page_size, value);
      } else {
        page[random() % page_size] = static_cast<unsigned char>(value);
      }
      written += page_size;
      if (rate_ > 0)
        std::this_thread::sleep_until(start + std::chrono::duration<double>(written / rate_));
    }
  }

  int file_ = -1;
  std::size_t size_ = 0;
  unsigned char* memory_ = nullptr;
  double rate_ = 0;
  std::atomic<bool> halted_ = false;
  std::vector<std::thread> threads_;
};

void run_command(TrackedMemory& memory, const std::string& name, std::istringstream& words) {
  std::string text;
  std::size_t offset = 0;
  std::size_t length = 0;
  int value = 0;
  if (name == "map-private" && words >> text >> length) return memory.map_private(text, length);
  if (name == "map-read-only" && words >> text >> length) return memory.map_read_only(text, length);
  if (name == "forbid-userfaultfd") return forbid_userfaultfd();
  if (name == "map" && words >> text >> length) return memory.map(text, length);
  if (name == "register") return memory.register_for_tracking();
  if (name == "resize" && words >> length) return memory.resize(length);
  if (name == "again") return memory.map_again();
  if (name == "halt") return memory.halt();
  if (name == "rate" && words >> length) return memory.set_rate(static_cast<double>(length));
  if (!(words >> offset >> length)) throw Problem{"no such command, or a word is missing"};
  if (name == "run")
    return memory.run(static_cast<unsigned>(offset), static_cast<unsigned>(length));
  if (name == "load") return memory.load(offset, length);
  if (name == "discard") return memory.advise(offset, length, MADV_DONTNEED);
  if (name == "punch") return memory.punch(offset, length);
  if (name == "crowd") return TrackedMemory::crowd(offset);
  if (name == "allocate") return memory.allocate(offset, length);
  if (name == "remap") return memory.remap(offset, length);
  if (name == "unmap") return memory.unmap(offset, length);
  if (!(words >> value)) throw Problem{"no such command, or the value is missing"};
  if (name == "store") return memory.store(offset, length, value);
  if (name == "receive") return memory.receive(offset, length, value);
  if (name == "receive-vector") return memory.receive_vector(offset, length, value);
  if (name == "read") return memory.read(offset, length, value);
  throw Problem{"no such command"};
}

}  // namespace

int main() {
  TrackedMemory memory;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    try {
      if (name == "environment") {
        words >> name;
        const char* value = std::getenv(name.c_str());
        std::cout << "ok " << (value != nullptr ? value : "(none)") << std::endl;
        continue;
      }
      if (name == "address") {
        std::cout << "ok " << reinterpret_cast<std::uintptr_t>(memory.address()) << std::endl;
        continue;
      }
      run_command(memory, name, words);
      std::cout << "ok" << std::endl;
    } catch (const Problem& problem) {
      std::cout << line << ": " << problem.what << std::endl;
    }
  }
  memory.halt();
}
