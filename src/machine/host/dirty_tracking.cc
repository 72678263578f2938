#include "machine/host/dirty_tracking.h"

#include <array>
#include <cerrno>

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/format.h>

#include "machine/host/mapping.h"

namespace berth::machine {
namespace {

struct Feature {
  std::uint64_t bit;
  std::string_view name;
};
constexpr std::uint64_t feature_wp_unpopulated = 1ULL << 13;
constexpr std::uint64_t feature_wp_async = 1ULL << 15;
constexpr std::array needed_features = {
    Feature{UFFD_FEATURE_PAGEFAULT_FLAG_WP, "pagefault_flag_wp"},
    Feature{UFFD_FEATURE_MISSING_SHMEM, "missing_shmem"},
    Feature{UFFD_FEATURE_MINOR_SHMEM, "minor_shmem"},
    Feature{UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "wp_hugetlbfs_shmem"},
    Feature{feature_wp_unpopulated, "wp_unpopulated"},
    Feature{feature_wp_async, "wp_async"},
};

// linux/fs.h of 6.7.
struct PageRegion {
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t categories;
};
struct ScanArgument {
  std::uint64_t size;
  std::uint64_t flags;
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t walk_end;
  std::uint64_t vec;
  std::uint64_t vec_len;
  std::uint64_t max_pages;
  std::uint64_t category_inverted;
  std::uint64_t category_mask;
  std::uint64_t category_anyof_mask;
  std::uint64_t return_mask;
};
constexpr unsigned long pagemap_scan = _IOWR('f', 16, ScanArgument);
constexpr std::uint64_t scan_protect_matching = 1 << 0;  // PM_SCAN_WP_MATCHING
constexpr std::uint64_t scan_check_async = 1 << 1;       // PM_SCAN_CHECK_WPASYNC
constexpr std::uint64_t page_is_written = 1 << 1;        // PAGE_IS_WRITTEN

constexpr std::size_t page_size = 4096;
constexpr std::size_t pages = 4;

Result<void> enable(const Fd& userfaultfd, std::uint64_t features) {
  uffdio_api api{.api = UFFD_API, .features = features, .ioctls = 0};
  if (::ioctl(userfaultfd.get(), UFFDIO_API, &api) == 0) return {};
  return errno_failure(errno, "userfaultfd has no asynchronous write protection");
}

Result<void> protect(const Fd& userfaultfd, const Mapping& memory) {
  const uffdio_range range{.start = memory.address(), .len = memory.size()};
  uffdio_register registration{.range = range, .mode = UFFDIO_REGISTER_MODE_WP, .ioctls = 0};
  if (::ioctl(userfaultfd.get(), UFFDIO_REGISTER, &registration) != 0)
    return errno_failure(errno, "shared memory cannot be registered for write protection");
  uffdio_writeprotect protection{.range = range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
  if (::ioctl(userfaultfd.get(), UFFDIO_WRITEPROTECT, &protection) != 0)
    return errno_failure(errno, "shared memory cannot be write-protected");
  return {};
}

/// Pages of the mapping that were written since they were last asked for, and asks anew.
Result<std::vector<std::size_t>> take_written(const Fd& pagemap, const Mapping& memory) {
  std::array<PageRegion, pages> regions{};
  ScanArgument scan{.size = sizeof(ScanArgument),
                    .flags = scan_protect_matching | scan_check_async,
                    .start = memory.address(),
                    .end = memory.address() + memory.size(),
                    .walk_end = 0,
                    .vec = reinterpret_cast<std::uintptr_t>(regions.data()),
                    .vec_len = regions.size(),
                    .max_pages = 0,
                    .category_inverted = 0,
                    .category_mask = page_is_written,
                    .category_anyof_mask = 0,
                    .return_mask = page_is_written};
  const int count = ::ioctl(pagemap.get(), pagemap_scan, &scan);
  if (count < 0) return errno_failure(errno, "PAGEMAP_SCAN");
  std::vector<std::size_t> written;
  for (int i = 0; i < count; ++i) {
    const PageRegion& region = regions[static_cast<std::size_t>(i)];
    for (std::uint64_t at = region.start; at < region.end; at += page_size)
      written.push_back((at - memory.address()) / page_size);
  }
  return written;
}

Result<void> expect_written(const Fd& pagemap, const Mapping& memory,
                            const std::vector<std::size_t>& expected) {
  const auto written = TRY(take_written(pagemap, memory));
  if (written == expected) return {};
  return failure(ErrorKind::unsupported,
                 fmt::format("pages [{}] were written, and PAGEMAP_SCAN found [{}]",
                             fmt::join(expected, " "), fmt::join(written, " ")));
}

}  // namespace

Result<Fd> open_userfaultfd() {
  Fd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
  if (fd) return fd;
  return errno_failure(errno, "userfaultfd");
}

Result<Fd> open_userfaultfd_device(const std::string& device) {
  const Fd opened(::open(device.c_str(), O_RDWR | O_CLOEXEC));
  if (!opened) return errno_failure(errno, device);
  Fd fd(::ioctl(opened.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK));
  if (fd) return fd;
  return errno_failure(errno, fmt::format("{} opens, but gives no userfaultfd", device));
}

Result<std::uint64_t> userfaultfd_features(const Fd& userfaultfd) {
  uffdio_api api{.api = UFFD_API, .features = 0, .ioctls = 0};
  if (::ioctl(userfaultfd.get(), UFFDIO_API, &api) == 0) return api.features;
  return errno_failure(errno, "UFFDIO_API");
}

std::vector<std::string_view> missing_userfaultfd_features(std::uint64_t features) {
  std::vector<std::string_view> names;
  for (const Feature& feature : needed_features) {
    if ((features & feature.bit) == 0) names.push_back(feature.name);
  }
  return names;
}

Result<void> try_dirty_scan() {
  const Fd file(::memfd_create("berth-doctor", MFD_CLOEXEC));
  if (!file || ::ftruncate(file.get(), pages * page_size) != 0)
    return errno_failure(errno, "no shared memory to try it with");
  const Mapping memory(pages * page_size, PROT_READ | PROT_WRITE, MAP_SHARED, file.get());
  if (!memory) return errno_failure(errno, "no shared memory to try it with");
  const Fd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap) return errno_failure(errno, "/proc/self/pagemap");
  const Fd userfaultfd = TRY(open_userfaultfd());
  TRY(enable(userfaultfd, feature_wp_async | feature_wp_unpopulated |
                              UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP));
  memory.write_byte(0);  // what is there before does not count
  TRY(protect(userfaultfd, memory));
  TRY(expect_written(pagemap, memory, {}));
  memory.write_byte(page_size);
  TRY(expect_written(pagemap, memory, {1}));
  memory.write_byte(0);
  memory.write_byte(3 * page_size);
  TRY(expect_written(pagemap, memory, {0, 3}));
  return expect_written(pagemap, memory, {});
}

}  // namespace berth::machine
