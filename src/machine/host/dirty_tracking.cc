#include "machine/host/dirty_tracking.h"

#include <array>
#include <cerrno>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/format.h>

#include "machine/host/mapping.h"
#include "memory/write_protection.h"

namespace berth::machine {
namespace {

struct Feature {
  std::uint64_t bit;
  std::string_view name;
};
constexpr std::array needed_features = {
    Feature{UFFD_FEATURE_PAGEFAULT_FLAG_WP, "pagefault_flag_wp"},
    Feature{UFFD_FEATURE_MISSING_SHMEM, "missing_shmem"},
    Feature{UFFD_FEATURE_MINOR_SHMEM, "minor_shmem"},
    Feature{UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "wp_hugetlbfs_shmem"},
    Feature{memory::uffd_feature_wp_unpopulated, "wp_unpopulated"},
    Feature{memory::uffd_feature_wp_async, "wp_async"},
};

constexpr std::size_t page_size = 4096;
constexpr std::size_t pages = 4;

Result<void> enable(const Fd& userfaultfd, std::uint64_t features) {
  uffdio_api api{.api = UFFD_API, .features = features, .ioctls = 0};
  if (::ioctl(userfaultfd.get(), UFFDIO_API, &api) == 0) return {};
  return errno_failure(errno, "userfaultfd has no asynchronous write protection");
}

Result<void> protect(const Fd& userfaultfd, const Mapping& mapping) {
  const uffdio_range range{.start = mapping.address(), .len = mapping.size()};
  uffdio_register registration{.range = range, .mode = UFFDIO_REGISTER_MODE_WP, .ioctls = 0};
  if (::ioctl(userfaultfd.get(), UFFDIO_REGISTER, &registration) != 0)
    return errno_failure(errno, "shared memory cannot be registered for write protection");
  uffdio_writeprotect protection{.range = range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
  if (::ioctl(userfaultfd.get(), UFFDIO_WRITEPROTECT, &protection) != 0)
    return errno_failure(errno, "shared memory cannot be write-protected");
  return {};
}

/// Pages of the mapping that were written since they were last asked for, and asks anew.
Result<std::vector<std::size_t>> take_written(const Fd& pagemap, const Mapping& mapping) {
  std::array<memory::PageRegion, pages> regions{};
  memory::PagemapScanArgument scan{
      .size = sizeof scan,
      .flags = memory::scan_protect_matching | memory::scan_check_async,
      .start = mapping.address(),
      .end = mapping.address() + mapping.size(),
      .walk_end = 0,
      .vec = reinterpret_cast<std::uintptr_t>(regions.data()),
      .vec_len = regions.size(),
      .max_pages = 0,
      .category_inverted = 0,
      .category_mask = memory::page_is_written,
      .category_anyof_mask = 0,
      .return_mask = memory::page_is_written};
  const int count = ::ioctl(pagemap.get(), memory::pagemap_scan, &scan);
  if (count < 0) return errno_failure(errno, "PAGEMAP_SCAN");
  std::vector<std::size_t> written;
  for (int i = 0; i < count; ++i) {
    const memory::PageRegion& region = regions[static_cast<std::size_t>(i)];
    for (std::uint64_t at = region.start; at < region.end; at += page_size)
      written.push_back((at - mapping.address()) / page_size);
  }
  return written;
}

Result<void> expect_written(const Fd& pagemap, const Mapping& mapping,
                            const std::vector<std::size_t>& expected) {
  const auto written = TRY(take_written(pagemap, mapping));
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
  const Mapping mapping(pages * page_size, PROT_READ | PROT_WRITE, MAP_SHARED, file.get());
  if (!mapping) return errno_failure(errno, "no shared memory to try it with");
  const Fd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap) return errno_failure(errno, "/proc/self/pagemap");
  const Fd userfaultfd = TRY(open_userfaultfd());
  TRY(enable(userfaultfd, memory::tracking_features));
  mapping.write_byte(0);  // what is there before does not count
  TRY(protect(userfaultfd, mapping));
  TRY(expect_written(pagemap, mapping, {}));
  mapping.write_byte(page_size);
  TRY(expect_written(pagemap, mapping, {1}));
  mapping.write_byte(0);
  mapping.write_byte(3 * page_size);
  TRY(expect_written(pagemap, mapping, {0, 3}));
  return expect_written(pagemap, mapping, {});
}

}  // namespace berth::machine
