#include "container/image_making.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>
#include <filesystem>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/fault_point.h"
#include "base/units.h"
#include "container/image_archive.h"
#include "container/image_name.h"
#include "container/program_run.h"
#include "machine/small_file.h"
#include "machine/volume_directory.h"

namespace berth::container {
namespace {

using machine::VolumeJob;
using Scratch = ImageStore::Scratch;

constexpr std::string_view registry_transport = "docker://";
constexpr std::chrono::seconds archive_stall{300};
constexpr std::chrono::hours work_limit{6};
constexpr int unpack_attempts_max = 4;
constexpr const char* destination = "oci:layout:image";  // in the scratch directory
// Times of files stay as they are; the file system's own is one that no file is younger than.
constexpr const char* made_at = "SOURCE_DATE_EPOCH=4102444800";  // 2100-01-01

void report(const VolumeJob& job, const char* phase, std::uint64_t done) {
  if (job.report) job.report({.phase = phase, .done = done, .total = 0});
}

/// What has come into the scratch directory, beside what the store had already.
std::uint64_t bytes_come(const std::string& path) {
  std::uint64_t bytes = 0;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator entry(path, error), end;
       !error && entry != end; entry.increment(error)) {
    struct stat status{};
    if (::lstat(entry->path().c_str(), &status) == 0 && S_ISREG(status.st_mode) &&
        status.st_nlink == 1)
      bytes += static_cast<std::uint64_t>(status.st_size);
  }
  return bytes;
}

/// What programs say, and what that is for us.
struct Complaint {
  std::string_view words;
  ErrorKind kind;
};
constexpr std::array complaints = {
    Complaint{"o space left on device", ErrorKind::no_space},
    Complaint{"isk quota exceeded", ErrorKind::no_space},
    Complaint{"manifest unknown", ErrorKind::not_found},
    Complaint{"name unknown", ErrorKind::not_found},
    Complaint{"StatusCode: 404", ErrorKind::not_found},
    Complaint{"404 (Not Found)", ErrorKind::not_found},
    Complaint{"peration not permitted", ErrorKind::permission},
    Complaint{"peration not supported", ErrorKind::unsupported},
    Complaint{"unauthorized", ErrorKind::permission},
    Complaint{"denied", ErrorKind::permission},
    Complaint{"authentication required", ErrorKind::permission},
    Complaint{"igest did not match", ErrorKind::corrupt},
    Complaint{"digest mismatch", ErrorKind::corrupt},
    Complaint{"verified reader", ErrorKind::corrupt},
    Complaint{"diffid", ErrorKind::corrupt},
    Complaint{"malicious tar", ErrorKind::corrupt},
    Complaint{"unpack layer", ErrorKind::corrupt},
    Complaint{"not correct mediatype", ErrorKind::unsupported},
    Complaint{"connection refused", ErrorKind::disconnected},
    Complaint{"connection reset", ErrorKind::disconnected},
    Complaint{"no such host", ErrorKind::disconnected},
    Complaint{"server gave HTTP response", ErrorKind::disconnected},
    Complaint{"i/o timeout", ErrorKind::disconnected},
    Complaint{"unexpected EOF", ErrorKind::disconnected},
    Complaint{"x509:", ErrorKind::disconnected},
};

Error understood(Error error) {
  if (error.kind() != ErrorKind::io_error) return error;
  for (const Complaint& complaint : complaints) {
    if (error.message().contains(complaint.words)) return {complaint.kind, error.message()};
  }
  return error;
}

Result<void> run(const ProgramRun& program, const ProgramLimits& limits) {
  auto ran = run_to_end(program, limits);
  if (!ran) return failure(understood(std::move(ran).error()));
  return ran;
}

/// Where skopeo copies from.
struct Source {
  std::string reference;             // "docker://…", "oci:…"
  std::vector<std::string> options;  // of any command that reads it
  std::chrono::seconds stall{0};
};

std::string host_architecture() {
  utsname names{};
  ::uname(&names);
  const std::string_view machine = names.machine;
  if (machine == "x86_64") return "amd64";
  if (machine == "aarch64") return "arm64";
  return std::string(machine);
}

ProgramRun skopeo(const Scratch& scratch, const std::string& command) {
  // Its own temporary files have to go with ours.
  return {.program = "skopeo",
          .package = "skopeo",
          .arguments = {"--tmpdir", scratch.path() + "/temporary", command},
          .directory = scratch.path(),
          .environment = {}};
}

/// Of a manifest list that has nothing for this host: what it has. Only then is it asked for:
/// registries count requests.
std::string platforms_offered(const Scratch& scratch, const Source& source, const VolumeJob& job) {
  ProgramRun program = skopeo(scratch, "copy");
  program.arguments.insert(program.arguments.end(), source.options.begin(), source.options.end());
  program.arguments.insert(program.arguments.end(),
                           {"--multi-arch", "index-only", source.reference, "dir:index"});
  if (!run(program, {.stop = job.stop, .whole = source.stall})) return "others";
  const auto text = machine::read_small_file(scratch.path() + "/index/manifest.json");
  return text ? platforms_of(*text).value_or("others") : "others";
}

Result<void> copy(const Scratch& scratch, const Source& source, const VolumeJob& job) {
  ProgramRun program = skopeo(scratch, "copy");
  program.arguments.insert(program.arguments.end(), source.options.begin(), source.options.end());
  // Layers that umoci does not unpack are recompressed; all others stay what they are.
  program.arguments.insert(program.arguments.end(), {"--quiet", "--dest-compress-format", "gzip",
                                                     source.reference, destination});
  const ProgramLimits limits{.stop = job.stop,
                             .whole = work_limit,
                             .progress =
                                 [&] {
                                   const std::uint64_t bytes = bytes_come(scratch.path());
                                   report(job, "copying", bytes);
                                   return bytes;
                                 },
                             .stall = source.stall};
  auto copied = run(program, limits);
  if (copied || !copied.error().message().contains("no image found in")) return copied;
  return failure(ErrorKind::unsupported,
                 fmt::format("it is for {}, and this host is linux/{}",
                             platforms_offered(scratch, source, job), host_architecture()));
}

/// What the copied image says of itself.
Result<ImageRecord> read_documents(const Scratch& scratch) {
  const std::string index = TRY(machine::read_small_file(scratch.layout() + "/index.json"));
  const auto entries = TRY(decode_index(index));
  if (entries.size() != 1) return failure(ErrorKind::corrupt, "the copy is not of one image");
  const std::string manifest_text =
      TRY(machine::read_small_file(scratch.blob(entries.front().digest)));
  const ImageManifest manifest = TRY(decode_manifest(manifest_text));
  ImageRecord record{.digest = entries.front().digest,
                     .manifest_size = entries.front().size,
                     .config_digest = manifest.config.digest,
                     .config_size = manifest.config.size};
  for (const Descriptor& layer : manifest.layers)
    record.layers.push_back({.digest = layer.digest, .diff_id = {}, .size = layer.size});
  const std::string config = TRY(machine::read_small_file(scratch.blob(manifest.config.digest)));
  TRY(decode_config(config, record));
  if (record.os == "linux" && record.architecture == host_architecture()) return record;
  return failure(ErrorKind::unsupported,
                 fmt::format("it is for {}/{}, and this host is linux/{}", record.os,
                             record.architecture, host_architecture()));
}

/// A UUID of the image, so that the same image becomes the same file system.
std::string uuid_of(const ImageRecord& record) {
  const std::string_view digits = digest_digits(record.digest);
  return fmt::format("{}-{}-{}-{}-{}", digits.substr(0, 8), digits.substr(8, 4),
                     digits.substr(12, 4), digits.substr(16, 4), digits.substr(20, 12));
}

/// Directories that no layer names are made, and changed, when that is needed: they get a time that
/// is always the same, 1970.
Result<void> settle_times(const std::string& tree, const timespec& begun) {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  const auto settle = [&](const std::string& path) -> Result<void> {
    struct stat status{};
    if (::lstat(path.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) return {};
    if (status.st_mtim.tv_sec < begun.tv_sec || status.st_mtim.tv_sec > now.tv_sec) return {};
    const timespec times[2] = {{.tv_sec = 0, .tv_nsec = UTIME_OMIT}, {.tv_sec = 0, .tv_nsec = 0}};
    if (::utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW) != 0)
      return errno_failure(errno, fmt::format("cannot set the time of '{}'", path));
    return {};
  };
  TRY(settle(tree));
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator entry(tree, error), end;
       !error && entry != end; entry.increment(error)) {
    TRY(settle(entry->path()));
  }
  if (error) return errno_failure(error.value(), fmt::format("cannot read '{}'", tree));
  return {};
}

Result<void> unpack(const Scratch& scratch, const std::string& tree, const VolumeJob& job) {
  ProgramRun program{.program = "umoci",
                     .package = "umoci",
                     .arguments = {"raw", "unpack", "--image", "layout:image", tree},
                     .directory = scratch.path(),
                     .environment = {}};
  for (int attempt = 1;; ++attempt) {
    auto unpacked = run(program, {.stop = job.stop, .whole = work_limit});
    const bool broke = !unpacked && unpacked.error().message().contains("umoci: panic");
    if (!broke || attempt == unpack_attempts_max) return unpacked;
    // When something fails, such as a write, umoci 0.4 may break before it says what: two of its
    // threads then use one hash. On one CPU it hardly does.
    TRY(machine::remove_tree(tree));
    program.environment = {"GOMAXPROCS=1"};
  }
}

Result<void> make_file_system(const Scratch& scratch, ImageRecord& record, const VolumeJob& job) {
  report(job, "unpacking", 0);
  const std::string tree = scratch.path() + "/tree";
  timespec begun{};
  ::clock_gettime(CLOCK_REALTIME_COARSE, &begun);
  TRY(unpack(scratch, tree, job));
  TRY(settle_times(tree, begun));
  fault_point("image.unpacked");
  const std::string file = scratch.image() + "/rootfs.erofs";
  TRY(run({.program = "mkfs.erofs",
           .package = "erofs-utils",
           .arguments = {"-zlz4", "--quiet", "-U" + uuid_of(record), file, tree},
           .directory = scratch.path(),
           .environment = {made_at}},
          {.stop = job.stop, .whole = work_limit, .progress = [&] {
             struct stat status{};
             const bool there = ::stat(file.c_str(), &status) == 0;
             const auto size = static_cast<std::uint64_t>(there ? status.st_size : 0);
             report(job, "making the file system", size);
             return size;
           }}));
  struct stat status{};
  if (::stat(file.c_str(), &status) != 0)
    return errno_failure(errno, fmt::format("mkfs.erofs has made no '{}'", file));
  record.size = static_cast<std::uint64_t>(status.st_size);
  return {};
}

Result<ImageRecord> make(ImageStore& store, const Scratch& scratch, const Source& source,
                         const std::string& from, const std::string& name, const VolumeJob& job) {
  report(job, "copying", 0);
  TRY(copy(scratch, source, job));
  fault_point("image.copied");
  ImageRecord record = TRY(read_documents(scratch));
  record.source = from;
  record.imported_at = format_time(std::chrono::system_clock::now());
  // The same image may have come before, and may go while we look.
  if (!store.contains(record.digest)) TRY(make_file_system(scratch, record, job));
  if (job.stop.stop_requested()) return failure(ErrorKind::cancelled, "cancelled");
  if (!TRY(store.publish(scratch, record, name))) {
    TRY(make_file_system(scratch, record, job));
    TRY(store.publish(scratch, record, name));
  }
  return store.find(record.digest);
}

}  // namespace

Result<std::string> name_to_pull(const PullRequest& request) {
  std::string_view text = request.image;
  if (text.starts_with(registry_transport)) text.remove_prefix(registry_transport.size());
  return TRY(parse_image_name(text)).text();
}

Result<ImageRecord> pull_image(ImageStore& store, const PullRequest& request,
                               const VolumeJob& job) {
  const std::string name = TRY(name_to_pull(request));
  const auto in_context = [&name](Error error) {
    return failure(std::move(error).with_context(fmt::format("cannot pull '{}'", name)));
  };
  auto scratch = store.begin();
  if (!scratch) return in_context(std::move(scratch).error());
  Source source{.reference = fmt::format("{}{}", registry_transport, name),
                .options = {fmt::format("--src-tls-verify={}", request.tls_verify)},
                .stall = request.stall};
  const std::string from = source.reference;
  auto record = make(store, *scratch, source, from, name, job);
  if (!record) return in_context(std::move(record).error());
  return record;
}

Result<ImageRecord> import_image(ImageStore& store, const ImportRequest& request,
                                 const VolumeJob& job) {
  const auto in_context = [&request](Error error) {
    return failure(
        std::move(error).with_context(fmt::format("cannot import '{}'", request.archive)));
  };
  std::string name;
  if (!request.name.empty()) name = TRY(parse_image_name(request.name)).text();
  const ImageArchive archive = TRY(examine_archive(request.archive));
  auto chosen = choose_image(archive, request.image);
  if (!chosen) return in_context(std::move(chosen).error());
  if (name.empty()) name = chosen->name;
  auto scratch = store.begin();
  if (!scratch) return in_context(std::move(scratch).error());
  // skopeo takes a path up to its first colon: one of ours has none.
  const std::string link = scratch->path() + "/source";
  if (::symlink(request.archive.c_str(), link.c_str()) != 0)
    return in_context(Error::from_errno(errno, "cannot make a link"));
  std::string reference = fmt::format("{}:source", to_string(archive.kind));
  if (!chosen->selector.empty()) reference += ':' + chosen->selector;
  auto record =
      make(store, *scratch, {.reference = reference, .options = {}, .stall = archive_stall},
           request.archive, name, job);
  if (!record) return in_context(std::move(record).error());
  return record;
}

}  // namespace berth::container
