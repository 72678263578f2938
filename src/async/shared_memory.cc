#include "async/shared_memory.h"

#include <cerrno>
#include <limits>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/boot_id.h"
#include "async/directories.h"

namespace berth {
namespace {

class MappedMemory final : public SharedMemory {
 public:
  explicit MappedMemory(MutableBytes mapped) : bytes_(mapped) {}
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;
  ~MappedMemory() override { ::munmap(bytes_.data(), bytes_.size()); }
  MutableBytes bytes() override { return bytes_; }

 private:
  MutableBytes bytes_;
};

Result<std::unique_ptr<SharedMemory>> map(int fd, const std::string& path, std::uint64_t size) {
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return errno_failure(errno, fmt::format("cannot map '{}'", path));
  ::madvise(memory, size, MADV_DONTDUMP);
  return std::make_unique<MappedMemory>(MutableBytes(static_cast<std::byte*>(memory), size));
}

}  // namespace

Result<std::unique_ptr<FileSharedMemoryStore>> FileSharedMemoryStore::create_at(
    const std::string& path) {
  TRY(make_directories(path));
  Fd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) return errno_failure(errno, fmt::format("cannot open the directory '{}'", path));
  return std::unique_ptr<FileSharedMemoryStore>(
      new FileSharedMemoryStore(std::move(directory), path, TRY(read_boot_id())));
}

Result<std::string> FileSharedMemoryStore::path_of(const std::string& name) const {
  if (name.empty() || name.starts_with('.') || name.find('/') != std::string::npos ||
      name.contains('\0')) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is not a name of shared memory", name));
  }
  return path_ + "/" + name;
}

Result<std::unique_ptr<SharedMemory>> FileSharedMemoryStore::open(const std::string& name) {
  const std::string path = TRY(path_of(name));
  const Fd fd(::openat(directory_.get(), name.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  struct stat status{};
  if (!fd || ::fstat(fd.get(), &status) != 0)
    return errno_failure(errno, fmt::format("cannot open '{}'", path));
  if (!S_ISREG(status.st_mode) || status.st_size == 0) {
    return failure(ErrorKind::corrupt, fmt::format("'{}' is not shared memory", path));
  }
  return map(fd.get(), path, static_cast<std::uint64_t>(status.st_size));
}

Result<std::unique_ptr<SharedMemory>> FileSharedMemoryStore::create(const std::string& name,
                                                                    std::uint64_t size) {
  const std::string path = TRY(path_of(name));
  if (size == 0 || size > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max())) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("shared memory '{}' cannot have {} bytes", path, size));
  }
  // Under another name first: the old region is there until the new one is. No name begins with a
  // dot.
  const std::string temporary = "." + name + ".new";
  const Fd fd(::openat(directory_.get(), temporary.c_str(),
                       O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) {
    return errno_failure(errno, fmt::format("cannot create '{}'", path));
  }
  auto memory = TRY(map(fd.get(), path, size));
  if (::renameat(directory_.get(), temporary.c_str(), directory_.get(), name.c_str()) != 0) {
    return errno_failure(errno, fmt::format("cannot create '{}'", path));
  }
  return memory;
}

Result<void> FileSharedMemoryStore::remove(const std::string& name) {
  const std::string path = TRY(path_of(name));
  if (::unlinkat(directory_.get(), name.c_str(), 0) == 0) return {};
  return errno_failure(errno, fmt::format("cannot remove '{}'", path));
}

}  // namespace berth
