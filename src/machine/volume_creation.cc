#include "machine/volume_creation.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/uring_file.h"
#include "base/fd.h"
#include "base/units.h"
#include "disk/map_file.h"
#include "machine/backing.h"
#include "machine/backing_specification.h"
#include "machine/file_copy.h"
#include "machine/host/program.h"
#include "machine/live_store.h"
#include "machine/volume_directory.h"

namespace berth::machine {
namespace {

constexpr const char* data_name = "data";
constexpr std::chrono::minutes mkfs_patience{10};

}  // namespace

VolumeCreation::VolumeCreation(UringLoop& loop, const StateLayout& state, const RunLayout& run,
                               const VolumeCreateRequest& request, JobObserver& observer)
    : loop_(loop), state_(state), run_(run), request_(request), observer_(observer) {}

VolumeCreation::~VolumeCreation() {
  if (pinned_ && !claim_->is_published()) remove_pins_of(state_, request_.name);
}

Task<Result<VolumeSummary>> VolumeCreation::run() {
  claim_.emplace(CO_TRY(VolumeClaim::take(state_, request_.name)));
  directory_ = CO_TRY(open_directory(loop_, claim_->path(), false));
  disk::CreateOptions options{.size = request_.size, .block_size = request_.block_size};
  if (!request_.backing.empty()) CO_TRY(co_await prepare_backing(options));
  if (!request_.import.empty()) CO_TRY(co_await import_data(options));
  if (!request_.adopt.empty()) CO_TRY(adopt_data(options));
  if (request_.ext4) CO_TRY(co_await make_file_system(options));
  CO_TRY(observer_.check());

  SystemRandom random;
  auto live = CO_TRY(open_live_store(run_, request_.name));
  disk::VolumeEnvironment environment{.loop = loop_,
                                      .directory = *directory_,
                                      .live_store = *live,
                                      .random = random,
                                      .open_backing = opener()};
  auto made = co_await disk::Volume::create(std::move(environment), options);
  live.reset();
  release_live_store(run_, request_.name);
  if (!made && !request_.adopt.empty()) {
    co_return failure(
        std::move(made).error().with_context(fmt::format("cannot adopt '{}'", request_.adopt)));
  }
  if (!made) co_return failure(std::move(made).error());
  const VolumeSummary summary = CO_TRY(co_await summarise());
  CO_TRY(write_summary(claim_->path(), summary));
  CO_TRY(claim_->publish());
  co_return summary;
}

disk::BackingOpener VolumeCreation::opener() {
  return make_backing_opener(
      loop_, {.volume_socket =
                  [run = run_](const std::string& volume, const std::string& /*checkpoint*/) {
                    return run.volume_socket(volume);
                  },
              .socket_directory = run_.run_dir});
}

Task<Result<void>> VolumeCreation::prepare_backing(disk::CreateOptions& options) {
  const auto written = CO_TRY(parse_backing(request_.backing));
  const BackingSpecification backing = CO_TRY(settle_format(written));
  if (backing.kind == BackingSpecification::Kind::volume_checkpoint) {
    // First the pin, then the proof that the checkpoint is there: it cannot go in between.
    pinned_ = true;
    CO_TRY(pin(state_, backing.volume, backing.checkpoint, request_.name));
  }
  options.backing = to_string(backing);
  const auto file = CO_TRY(co_await opener()(options.backing));
  if (options.size == 0) options.size = round_up(CO_TRY(file->size()), 512);
  co_return Result<void>{};
}

Task<Result<void>> VolumeCreation::import_data(disk::CreateOptions& options) {
  const auto written = CO_TRY(parse_backing(request_.import));
  const BackingSpecification source = CO_TRY(settle_format(written));
  const auto file = CO_TRY(co_await opener()(to_string(source)));
  const std::uint64_t size = CO_TRY(file->size());
  if (options.size == 0) options.size = round_up(size, 512);
  if (options.size < size) {
    co_return failure(ErrorKind::invalid_argument,
                      fmt::format("'{}' has {} bytes and does not fit into {}", request_.import,
                                  size, options.size));
  }
  const auto data = CO_TRY(directory_->open(data_name, {.create = true, .exclusive = true}));
  const Fd from(source.kind == BackingSpecification::Kind::raw_file
                    ? ::open(source.path.c_str(), O_RDONLY | O_CLOEXEC)
                    : -1);
  const Fd to(::open((claim_->path() + '/' + data_name).c_str(), O_WRONLY | O_CLOEXEC));
  if (!share_blocks(from, to)) CO_TRY(co_await copy_data(loop_, *file, size, *data, observer_));
  CO_TRY(data->truncate(options.size));
  observer_.report({.phase = "sync", .done = size, .total = size});
  CO_TRY(co_await data->sync());
  options.adopt = true;
  co_return Result<void>{};
}

Result<void> VolumeCreation::adopt_data(disk::CreateOptions& options) {
  const std::string& path = request_.adopt;
  const auto refuse = [&path](std::string_view why) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' cannot be adopted: {}", path, why));
  };
  if (!path.starts_with('/')) return refuse("write an absolute path");
  const auto format =
      TRY(settle_format({.kind = BackingSpecification::Kind::unknown_file, .path = path}));
  if (format.kind != BackingSpecification::Kind::raw_file) {
    return refuse(
        fmt::format("it is a {} image; use it as a backing, or import it", format.format));
  }
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0)
    return errno_failure(errno, fmt::format("cannot look at '{}'", path));
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
    return refuse("it is neither a file nor a block device");
  // Each would take the other's writes for its own content, unchanged.
  if (const std::string other = volume_of_data(state_, path); !other.empty()) {
    return failure(
        ErrorKind::in_use,
        fmt::format("'{}' cannot be adopted: it is the volume '{}' already", path, other));
  }
  if (::symlink(path.c_str(), (claim_->path() + '/' + data_name).c_str()) != 0) {
    return errno_failure(errno, fmt::format("cannot link to '{}'", path));
  }
  options.adopt = true;
  return {};
}

Task<Result<void>> VolumeCreation::make_file_system(disk::CreateOptions& options) {
  const auto data = CO_TRY(directory_->open(data_name, {.create = true, .exclusive = true}));
  CO_TRY(data->truncate(options.size));
  observer_.report({.phase = "make the file system", .done = 0, .total = options.size});
  // What is zero is said to be so: nothing is written for it, here or later by the guest.
  const std::vector<std::string> command = {"/usr/sbin/mkfs.ext4",
                                            "-q",
                                            "-F",
                                            "-m",
                                            "0",
                                            "-E",
                                            "nodiscard,assume_storage_prezeroed=1",
                                            claim_->path() + '/' + data_name};
  const auto made =
      co_await offload(loop_, [&command] { return run_program(command, mkfs_patience); });
  if (!made) {
    co_return failure(
        Error(made.error())
            .with_context(fmt::format("cannot make an ext4 in {} bytes (mkfs.ext4, of "
                                      "the package e2fsprogs)",
                                      options.size)));
  }
  CO_TRY(co_await data->sync());
  options.adopt = true;
  co_return Result<void>{};
}

Task<Result<VolumeSummary>> VolumeCreation::summarise() {
  const auto map = CO_TRY(co_await disk::MapFile::open(loop_, *directory_, true));
  VolumeSummary summary{.name = request_.name};
  summary.id = map->volume().to_string();
  summary.block_size = map->superblock().block_size;
  summary.size = map->state().size;
  summary.backing = map->state().backing;
  summary.adopted = request_.adopt;
  summary.created_at = format_time(std::chrono::system_clock::time_point(
      std::chrono::milliseconds(map->superblock().created_ms)));
  co_return summary;
}

}  // namespace berth::machine
