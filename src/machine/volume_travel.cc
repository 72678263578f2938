#include "machine/volume_travel.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/uring_file.h"
#include "base/fd.h"
#include "base/units.h"
#include "disk/hold_layer.h"
#include "machine/backing_specification.h"
#include "machine/file_copy.h"
#include "machine/volume_directory.h"

namespace berth::machine {
namespace {

constexpr const char* data_name = "data";
constexpr const char* description_name = "volume.json";
constexpr std::size_t names_max = 1 << 20;  // in a directory of a volume

/// Of a link, where it leads; for messages.
std::string target_of(int directory, const std::string& name) {
  std::string target(4096, '\0');
  const ssize_t length = ::readlinkat(directory, name.c_str(), target.data(), target.size());
  target.resize(length < 0 ? 0 : static_cast<std::size_t>(length));
  return target;
}

// --- What is in a volume's directory.

struct FoundFile {
  std::string name;  // in its directory
  struct stat status{};
};

/// A directory of a volume and the files of it that belong to the volume, all of them ordinary.
class Survey {
 public:
  static Result<Survey> of(const std::string& path) {
    Survey survey(path);
    survey.top_ = Fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!survey.top_) return errno_failure(errno, fmt::format("cannot open '{}'", path));
    for (const std::string& name : TRY(names_of(survey.top_.get(), path))) {
      TRY(survey.look_at(survey.top_.get(), name, path));
    }
    if (!survey.has(disk::MapFile::file_name) || !survey.has(data_name)) {
      return failure(ErrorKind::invalid_argument,
                     fmt::format("'{}' is no volume's directory: a volume has a '{}' and a '{}'",
                                 path, disk::MapFile::file_name, data_name));
    }
    return survey;
  }

  int top() const { return top_.get(); }
  int holds() const { return holds_.get(); }  // -1 if there is none
  const std::vector<FoundFile>& files() const { return files_; }
  const std::vector<FoundFile>& hold_files() const { return hold_files_; }

  /// Bytes that their blocks take.
  std::uint64_t bytes() const {
    std::uint64_t sum = 0;
    for (const auto* files : {&files_, &hold_files_}) {
      for (const FoundFile& file : *files)
        sum += static_cast<std::uint64_t>(file.status.st_blocks) * 512;
    }
    return sum;
  }

  /// Whoever has another name of a file could write to it past the volume.
  Result<void> check_only_names() const {
    for (const auto* files : {&files_, &hold_files_}) {
      for (const FoundFile& file : *files) {
        if (file.status.st_nlink == 1) continue;
        return failure(
            ErrorKind::precondition,
            fmt::format("'{}' in '{}' has another name elsewhere (a hard link): copy the "
                        "volume, instead of taking it where it is",
                        file.name, path_));
      }
    }
    return {};
  }

 private:
  explicit Survey(std::string path) : path_(std::move(path)) {}

  static Result<std::vector<std::string>> names_of(int directory, const std::string& path) {
    const auto failed = [&path] {
      return errno_failure(errno, fmt::format("cannot list '{}'", path));
    };
    Fd fd(::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd) return failed();
    struct Close {
      void operator()(DIR* stream) const { ::closedir(stream); }
    };
    const std::unique_ptr<DIR, Close> stream(::fdopendir(fd.get()));
    if (!stream) return failed();
    fd.release();  // the stream's now
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(stream.get())) {
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") names.emplace_back(name);
      if (names.size() > names_max) {
        return failure(ErrorKind::limit,
                       fmt::format("'{}' has more than {} names", path, names_max));
      }
    }
    if (errno != 0) return failed();
    std::ranges::sort(names);
    return names;
  }

  Result<void> look_at(int directory, const std::string& name, const std::string& path) {
    FoundFile file{.name = name};
    if (::fstatat(directory, name.c_str(), &file.status, AT_SYMLINK_NOFOLLOW) != 0)
      return errno_failure(errno, fmt::format("cannot look at '{}/{}'", path, name));
    const bool in_holds = directory != top_.get();
    if (S_ISLNK(file.status.st_mode)) return link_found(directory, name, path);
    if (S_ISREG(file.status.st_mode)) {
      if (in_holds ? is_hold(name) : is_file_of_volume(name))
        (in_holds ? hold_files_ : files_).push_back(std::move(file));
      return {};
    }
    if (!S_ISDIR(file.status.st_mode)) {
      return failure(ErrorKind::invalid_argument,
                     fmt::format("'{}/{}' is neither a file nor a directory: that belongs into no "
                                 "volume",
                                 path, name));
    }
    if (in_holds || name != disk::HoldLayer::directory_name) return {};
    const std::string holds_path = path + '/' + name;
    holds_ = Fd(::openat(directory, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!holds_) return errno_failure(errno, fmt::format("cannot open '{}'", holds_path));
    for (const std::string& hold : TRY(names_of(holds_.get(), holds_path)))
      TRY(look_at(holds_.get(), hold, holds_path));
    return {};
  }

  Result<void> link_found(int directory, const std::string& name, const std::string& path) const {
    if (directory == top_.get() && name == data_name) {
      return failure(
          ErrorKind::precondition,
          fmt::format("the data of the volume in '{}' was adopted, and lies at '{}': it does not "
                      "travel with the directory. Export a checkpoint of it instead",
                      path, target_of(directory, name)));
    }
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}/{}' is a link, to '{}': that belongs into no volume", path,
                               name, target_of(directory, name)));
  }

  static bool is_file_of_volume(const std::string& name) {
    return name == disk::MapFile::file_name || name == data_name || name == description_name;
  }
  static bool is_hold(const std::string& name) {
    constexpr std::size_t digits = 16;
    return name.size() == digits && name.find_first_not_of("0123456789abcdef") == std::string::npos;
  }
  bool has(std::string_view name) const {
    return std::ranges::any_of(files_, [name](const FoundFile& file) { return file.name == name; });
  }

  std::string path_;
  Fd top_;
  Fd holds_;
  std::vector<FoundFile> files_;
  std::vector<FoundFile> hold_files_;
};

// --- Copying.

/// The progress of one file among others.
class PartObserver final : public JobObserver {
 public:
  PartObserver(JobObserver& whole, std::uint64_t before, std::uint64_t part, std::uint64_t total)
      : whole_(whole), before_(before), part_(part), total_(total) {}
  Result<void> check() const override { return whole_.check(); }
  void report(const ControlProgress& progress) override {
    // A file counts what lies between its data, too; here it is what takes space.
    const double done = progress.total == 0 ? 1
                                            : static_cast<double>(progress.done) /
                                                  static_cast<double>(progress.total);
    const auto bytes = static_cast<std::uint64_t>(done * static_cast<double>(part_));
    whole_.report(
        {.phase = progress.phase, .done = before_ + std::min(bytes, part_), .total = total_});
  }

 private:
  JobObserver& whole_;
  const std::uint64_t before_;
  const std::uint64_t part_;
  const std::uint64_t total_;
};

bool is_unchanged(const struct stat& before, const struct stat& after) {
  return before.st_size == after.st_size && before.st_mtim.tv_sec == after.st_mtim.tv_sec &&
         before.st_mtim.tv_nsec == after.st_mtim.tv_nsec &&
         before.st_ctim.tv_sec == after.st_ctim.tv_sec &&
         before.st_ctim.tv_nsec == after.st_ctim.tv_nsec;
}

class DirectoryCopy {
 public:
  DirectoryCopy(UringLoop& loop, std::string from, std::string to, JobObserver& observer,
                VolumeCopyOptions options)
      : loop_(loop),
        from_(std::move(from)),
        to_(std::move(to)),
        observer_(observer),
        options_(options) {}

  Task<Result<CopiedVolume>> run() {
    const Survey survey = CO_TRY(Survey::of(from_));
    const auto directory = CO_TRY(open_directory(loop_, from_, false));
    const bool arrives = options_.arrival.has_value();
    const auto volume = CO_TRY(co_await disk::ClosedVolume::open(loop_, *directory, arrives));
    if (arrives) {
      CO_TRY(volume->check_arrival(*options_.arrival));
    } else {
      CO_TRY(volume->check_closed());
      const auto contents = CO_TRY(co_await volume->read_contents());
      CO_TRY(check_can_leave(volume->state().backing, contents.needs_backing));
    }
    total_ = survey.bytes();
    const Fd to(::open(to_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!to) co_return errno_failure(errno, fmt::format("cannot open '{}'", to_));
    if (survey.holds() >= 0) CO_TRY(co_await copy_holds(survey, to.get()));
    for (const FoundFile& file : survey.files())
      CO_TRY(co_await copy_file(survey.top(), file, from_, to.get(), to_));
    CO_TRY(finish_directory(survey.top(), to.get(), to_));
    co_return CopiedVolume{.id = volume->id(), .bytes = total_, .backing = volume->state().backing};
  }

 private:
  /// What stands on a checkpoint of a volume that stays here would arrive without it.
  Result<void> check_can_leave(const std::string& backing, bool needs_backing) const {
    if (!needs_backing) return {};
    const auto parsed = parse_backing(backing);
    if (!parsed || parsed->kind != BackingSpecification::Kind::volume_checkpoint) return {};
    return failure(ErrorKind::precondition,
                   fmt::format("the volume in '{}' stands on '{}', which does not travel with it: "
                               "'berth volume populate' copies what it needs of that, then export "
                               "it again",
                               from_, backing));
  }

  Task<Result<void>> copy_holds(const Survey& survey, int to) {
    const std::string name = disk::HoldLayer::directory_name;
    const std::string path = to_ + '/' + name;
    if (::mkdirat(to, name.c_str(), 0700) != 0)
      co_return errno_failure(errno, fmt::format("cannot make '{}'", path));
    const Fd holds(::openat(to, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!holds) co_return errno_failure(errno, fmt::format("cannot open '{}'", path));
    for (const FoundFile& file : survey.hold_files()) {
      CO_TRY(co_await copy_file(survey.holds(), file, from_ + '/' + name, holds.get(), path));
    }
    co_return finish_directory(survey.holds(), holds.get(), path);
  }

  Task<Result<void>> copy_file(int from_directory, const FoundFile& file, std::string from_path,
                               int to_directory, std::string to_path) {
    const std::string from_name = from_path + '/' + file.name;
    const std::string to_name = to_path + '/' + file.name;
    Fd from(::openat(from_directory, file.name.c_str(),
                     O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    struct stat before{};
    if (!from || ::fstat(from.get(), &before) != 0)
      co_return errno_failure(errno, fmt::format("cannot open '{}'", from_name));
    Fd to(::openat(to_directory, file.name.c_str(),
                   O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!to) co_return errno_failure(errno, fmt::format("cannot make '{}'", to_name));
    const int from_fd = from.get();
    const int to_fd = to.get();

    const auto part = static_cast<std::uint64_t>(file.status.st_blocks) * 512;
    PartObserver observer(observer_, done_, part, total_);
    CO_TRY(observer.check());
    const bool shared = share_blocks(from, to);
    const auto source = CO_TRY(UringFile::adopt(loop_, std::move(from), from_name));
    const auto target = CO_TRY(UringFile::adopt(loop_, std::move(to), to_name));
    if (!shared) {
      CO_TRY(co_await copy_data(loop_, *source, static_cast<std::uint64_t>(before.st_size), *target,
                                observer));
    }
    struct stat after{};
    if (::fstat(from_fd, &after) != 0 || !is_unchanged(before, after)) {
      co_return failure(ErrorKind::in_use,
                        fmt::format("'{}' was changed while it was copied", from_name));
    }
    // The time of modification is what tells the volume that this is its data file.
    const std::array<timespec, 2> times{before.st_atim, before.st_mtim};
    const mode_t mode = options_.keep_modes ? before.st_mode & 0777U : 0600;
    if (::fchmod(to_fd, mode) != 0 || ::futimens(to_fd, times.data()) != 0)
      co_return errno_failure(errno, fmt::format("cannot set the times of '{}'", to_name));
    observer.report({.phase = "sync", .done = 1, .total = 1});
    CO_TRY(co_await target->sync_all());
    done_ += part;
    co_return Result<void>{};
  }

  Result<void> finish_directory(int from, int to, const std::string& path) const {
    struct stat status{};
    if (::fstat(from, &status) != 0)
      return errno_failure(errno, fmt::format("cannot look at what '{}' is copied from", path));
    const std::array<timespec, 2> times{status.st_atim, status.st_mtim};
    const mode_t mode = options_.keep_modes ? status.st_mode & 0777U : 0700;
    if (::fchmod(to, mode) != 0 || ::futimens(to, times.data()) != 0 || ::fsync(to) != 0)
      return errno_failure(errno, fmt::format("cannot sync the directory '{}'", path));
    return {};
  }

  UringLoop& loop_;
  const std::string from_;
  const std::string to_;
  JobObserver& observer_;
  const VolumeCopyOptions options_;
  std::uint64_t done_ = 0;
  std::uint64_t total_ = 0;
};

VolumeSummary summary_of(const disk::ClosedVolume& volume, std::string name) {
  // What comes from elsewhere may say anything, and the clock's own range ends in 2262.
  constexpr std::int64_t created_ms_max = 9'000'000'000'000;
  const std::chrono::milliseconds created(
      std::clamp<std::int64_t>(volume.superblock().created_ms, 0, created_ms_max));
  return {.name = std::move(name),
          .id = volume.id().to_string(),
          .size = volume.state().size,
          .block_size = volume.superblock().block_size,
          .backing = volume.state().backing,
          .adopted = "",
          .created_at = format_time(std::chrono::system_clock::time_point(created))};
}

}  // namespace

Task<Result<CopiedVolume>> copy_volume_directory(UringLoop& loop, std::string from, std::string to,
                                                 JobObserver& observer, VolumeCopyOptions options) {
  DirectoryCopy copy(loop, std::move(from), std::move(to), observer, options);
  co_return co_await copy.run();
}

Task<Result<ArrivedVolume>> import_volume_directory(
    UringLoop& loop, std::string path, std::string volume, disk::Arrival arrival,
    std::function<Result<void>(const ArrivingVolume&)> accept) {
  const Survey survey = CO_TRY(Survey::of(path));
  CO_TRY(survey.check_only_names());
  const auto directory = CO_TRY(open_directory(loop, path, false));
  const auto closed = CO_TRY(co_await disk::ClosedVolume::open(loop, *directory, false));
  CO_TRY(closed->check_arrival(arrival));
  const auto contents = CO_TRY(co_await closed->read_contents());
  CO_TRY(accept({.name = volume,
                 .id = closed->id(),
                 .backing = closed->state().backing,
                 .backing_limit = closed->state().backing_limit,
                 .needs_backing = contents.needs_backing}));
  SystemRandom random;
  ArrivedVolume arrived;
  arrived.settled = CO_TRY(co_await closed->settle(random, arrival));
  arrived.summary = summary_of(*closed, std::move(volume));
  CO_TRY(write_summary(path, arrived.summary));
  co_return arrived;
}

Result<void> check_backing_is_here(const StateLayout& state, const ArrivingVolume& volume) {
  if (volume.backing.empty() || !volume.needs_backing) return {};
  const auto refuse = [&volume](std::string_view why) {
    return failure(ErrorKind::precondition,
                   fmt::format("the volume stands on '{}': {}", volume.backing, why));
  };
  const BackingSpecification backing = TRY(parse_backing(volume.backing));
  switch (backing.kind) {
    case BackingSpecification::Kind::nbd: return {};
    case BackingSpecification::Kind::volume_checkpoint:
      if (is_pinned(state, backing.volume, backing.checkpoint, volume.name)) return {};
      return refuse(
          "a checkpoint of another volume, which did not come with it. Where it comes from, "
          "'berth volume populate' copies what it needs of that");
    default: break;
  }
  struct stat status{};
  if (::stat(backing.path.c_str(), &status) != 0)
    return refuse(errno == ENOENT ? "there is no such file here; bring it to the same place"
                                  : "that file cannot be looked at here");
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
    return refuse("that is neither a file nor a block device here");
  if (backing.kind == BackingSpecification::Kind::raw_file && S_ISREG(status.st_mode) &&
      static_cast<std::uint64_t>(status.st_size) < volume.backing_limit) {
    return refuse(fmt::format("that file has {} bytes here, and {} are needed", status.st_size,
                              volume.backing_limit));
  }
  // A directory that comes from somebody else must not open other people's disks.
  std::error_code error;
  const auto real = std::filesystem::canonical(backing.path, error);
  const auto volumes = std::filesystem::weakly_canonical(state.volumes(), error);
  const auto [end, rest] = std::ranges::mismatch(volumes, real);
  if (end == volumes.end()) return refuse("that is a part of a volume of this host");
  return {};
}

}  // namespace berth::machine
