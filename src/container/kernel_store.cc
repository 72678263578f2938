#include "container/kernel_store.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "async/directories.h"
#include "base/checksum.h"
#include "base/fd.h"
#include "base/log.h"
#include "container/kernel_image.h"
#include "machine/control_messages.h"
#include "machine/host/program.h"
#include "machine/layout.h"
#include "machine/small_file.h"
#include "machine/volume_directory.h"

namespace berth::container {
namespace {

namespace fs = std::filesystem;
using machine::Json;

constexpr const char* agent_name = "berth-agent";
constexpr const char* making_prefix = ".making-";
constexpr const char* debian_package = "linux-image-cloud-amd64";
constexpr std::chrono::minutes download_patience{10};
constexpr std::chrono::minutes unpack_patience{5};
constexpr std::chrono::seconds question_patience{60};

Error from(const std::error_code& error, const std::string& context) {
  return Error::from_errno(error.value(), context);
}

/// The only file or directory in it whose name begins so.
Result<std::string> only_one(const std::string& directory, std::string_view prefix,
                             std::string_view what) {
  std::vector<std::string> found;
  for (const std::string& name : machine::names_in(directory))
    if (name.starts_with(prefix)) found.push_back(fmt::format("{}/{}", directory, name));
  if (found.size() == 1) return found.front();
  return failure(ErrorKind::invalid_argument,
                 fmt::format("it has {} where one was expected, {}",
                             found.empty() ? "nothing" : "several files", what));
}

/// The package with the kernel: the one that is named here only depends on it.
Result<std::string> name_of_package() {
  const std::string answer = TRY(
      machine::run_program({"/usr/bin/apt-cache", "depends", debian_package}, question_patience));
  constexpr std::string_view word = "Depends: ";
  const std::size_t begin = answer.find(word);
  if (begin == std::string::npos) {
    return failure(ErrorKind::not_found,
                   fmt::format("apt knows no {}: apt-get update", debian_package));
  }
  const std::size_t end = answer.find('\n', begin);
  return answer.substr(begin + word.size(), end - begin - word.size());
}

/// A fresh directory that goes with this.
class Scratch {
 public:
  static Result<Scratch> make(const std::string& parent) {
    TRY(make_directories(parent));
    std::string path = fmt::format("{}/{}XXXXXX", parent, making_prefix);
    if (::mkdtemp(path.data()) == nullptr)
      return errno_failure(errno, fmt::format("cannot make a directory in '{}'", parent));
    return Scratch(std::move(path));
  }
  Scratch(Scratch&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  Scratch& operator=(Scratch&&) = delete;
  ~Scratch() {
    if (!path_.empty()) (void)machine::remove_tree(path_);
  }
  const std::string& path() const { return path_; }

 private:
  explicit Scratch(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

Result<std::string> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (bytes.empty()) return failure(ErrorKind::io_error, fmt::format("cannot read '{}'", path));
  return bytes;
}

Result<void> write_file(const std::string& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << bytes;
  out.close();
  if (out) return {};
  ::unlink(path.c_str());
  return failure(ErrorKind::io_error, fmt::format("cannot write '{}'", path));
}

/// One that cannot be unpacked is booted as it is.
Result<void> write_unpacked(const std::string& image, const std::string& target) {
  const auto kernel = unpack_kernel(TRY(read_file(image)));
  if (!kernel) {
    log_info("'{}': {}", image, kernel.error().message());
    return {};
  }
  TRY(write_file(target, *kernel));
  // QEMU's user gets it as an open file, and opens it again.
  if (::chmod(target.c_str(), 0644) != 0)
    return errno_failure(errno, fmt::format("cannot set the mode of '{}'", target));
  return {};
}

/// All that was written to the file system that it lies on is durable.
Result<void> sync_file_system(const std::string& directory) {
  const Fd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd || ::syncfs(fd.get()) != 0)
    return errno_failure(errno, fmt::format("cannot make '{}' durable", directory));
  return {};
}

Result<std::string> download(const Scratch& scratch) {
  const std::string package = TRY(name_of_package());
  TRY(machine::run_program({"/usr/bin/env", "--chdir=" + scratch.path(), "apt-get", "-qq", "-o",
                            "APT::Sandbox::User=root", "download", package},
                           download_patience));
  return only_one(scratch.path(), package, "the package");
}

Result<KernelRecord> decode_record(const std::string& text) {
  const Json json = TRY(machine::parse_json(text));
  return KernelRecord{.release = TRY(machine::required_text_param(json, "release")),
                      .source = TRY(machine::text_param(json, "source")),
                      .imported_at = TRY(machine::text_param(json, "imported_at"))};
}

}  // namespace

KernelStore::KernelStore(std::string state_dir) : state_dir_(std::move(state_dir)) {}

std::string KernelStore::path(const std::string& release) const {
  return fmt::format("{}/kernels/{}", state_dir_, release);
}

std::string KernelStore::image(const std::string& release) const {
  return path(release) + "/vmlinuz";
}

std::string KernelStore::unpacked(const std::string& release) const {
  std::string file = path(release) + "/vmlinux";
  return machine::path_exists(file) ? file : std::string();
}

Result<void> KernelStore::open() const {
  for (const std::string& name : machine::names_in(path("")))
    if (name.starts_with('.')) TRY(machine::remove_tree(path(name)));
  return {};
}

Result<std::vector<KernelRecord>> KernelStore::list() const {
  std::vector<KernelRecord> kernels;
  for (const std::string& name : machine::names_in(path(""))) {
    if (name.starts_with('.')) continue;
    const auto text = machine::read_small_file(path(name) + "/kernel.json");
    auto record = text ? decode_record(*text) : failure(text.error());
    if (record) {
      kernels.push_back(*std::move(record));
    } else {
      log_warning("the kernel '{}': {}", name, record.error().message());
    }
  }
  std::ranges::sort(kernels, std::ranges::greater(), &KernelRecord::imported_at);
  return kernels;
}

Result<KernelRecord> KernelStore::current() const {
  std::vector<KernelRecord> kernels = TRY(list());
  if (!kernels.empty()) return std::move(kernels.front());
  return failure(ErrorKind::precondition,
                 "there is no kernel for microVMs yet: get one with `berth kernel import`");
}

Result<KernelRecord> KernelStore::import(const KernelSource& source, const std::string& imported_at,
                                         const machine::VolumeJob& job) const {
  const std::lock_guard lock(mutex_);
  const machine::VolumeJobObserver observer(job, "the import");
  const auto phase = [&job](const char* name) {
    if (job.report) job.report({.phase = name, .done = 0, .total = 0});
  };
  const Scratch scratch = TRY(Scratch::make(path("").substr(0, path("").size() - 1)));
  KernelSource files = source;
  KernelRecord record{.release = {}, .source = source.package, .imported_at = imported_at};
  if (files.image.empty()) {
    if (files.package.empty()) {
      phase("download");
      files.package = TRY(download(scratch));
      record.source = fs::path(files.package).filename();
    }
    TRY(observer.check());
    phase("unpack");
    const std::string unpacked = scratch.path() + "/unpacked";
    auto done =
        machine::run_program({"/usr/bin/dpkg-deb", "-x", files.package, unpacked}, unpack_patience);
    if (!done) {
      return failure(std::move(done).error().with_context(
          fmt::format("'{}' cannot be unpacked", files.package)));
    }
    files.image = TRY(only_one(unpacked + "/boot", "vmlinuz-", "a kernel"));
    files.modules = TRY(only_one(unpacked + "/lib/modules", "", "the modules of one kernel"));
  } else {
    record.source = files.image;
  }
  record.release = fs::path(files.modules).filename();
  if (!machine::is_valid_name(record.release)) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is no directory of a kernel's modules", files.modules));
  }
  TRY(observer.check());
  const std::string made = scratch.path() + "/kernel";
  std::error_code error;
  fs::create_directory(made, error);
  if (!error) fs::copy_file(files.image, made + "/vmlinuz", error);
  if (!error)
    fs::copy(fs::canonical(files.modules, error), made + "/modules",
             fs::copy_options::recursive | fs::copy_options::skip_symlinks, error);
  if (error) return failure(from(error, fmt::format("cannot copy the kernel '{}'", files.image)));
  TRY(write_unpacked(made + "/vmlinuz", made + "/vmlinux"));
  const std::string agent = TRY(find_agent());
  TRY(make_initramfs({.agent = agent, .modules = made + "/modules"}));  // it can be used
  TRY(machine::write_small_file(
      made + "/kernel.json",
      Json({{"release", record.release}, {"source", record.source}, {"imported_at", imported_at}})
              .dump(2) +
          '\n'));
  TRY(sync_file_system(made));
  TRY(observer.check());
  if (machine::path_exists(path(record.release))) {
    // A microVM that starts at this very moment may find none: it says so, and starts again.
    const std::string old = scratch.path() + "/old";
    if (::rename(path(record.release).c_str(), old.c_str()) != 0)
      return errno_failure(errno, fmt::format("cannot replace '{}'", path(record.release)));
  }
  if (::rename(made.c_str(), path(record.release).c_str()) != 0)
    return errno_failure(errno, fmt::format("cannot make '{}'", path(record.release)));
  TRY(machine::sync_directory(path("")));
  return record;
}

Result<std::string> KernelStore::initrd(const std::string& release) const {
  const std::lock_guard lock(mutex_);
  const std::string agent = TRY(find_agent());
  const std::string bytes = TRY(read_file(agent));
  std::string target = fmt::format("{}/initrd-{:016x}", path(release), checksum64(as_bytes(bytes)));
  if (machine::path_exists(target)) return target;
  const std::string archive =
      TRY(make_initramfs({.agent = agent, .modules = path(release) + "/modules"}));
  const std::string making = target + ".making";
  TRY(write_file(making, archive));
  // Of other builds of the agent.
  for (const std::string& name : machine::names_in(path(release))) {
    const std::string other = fmt::format("{}/{}", path(release), name);
    if (name.starts_with("initrd-") && other != making) ::unlink(other.c_str());
  }
  if (::rename(making.c_str(), target.c_str()) != 0)
    return errno_failure(errno, fmt::format("cannot make '{}'", target));
  return target;
}

Result<std::string> find_agent() {
  std::error_code error;
  const fs::path directory = fs::read_symlink("/proc/self/exe", error).parent_path();
  if (error) return failure(from(error, "cannot read /proc/self/exe"));
  for (const fs::path& place : {directory, directory.parent_path() / "lib/berth"}) {
    fs::path agent = place / agent_name;
    if (fs::is_regular_file(agent, error)) return agent.string();
  }
  return failure(ErrorKind::not_found,
                 fmt::format("{} is neither in '{}' nor in '{}/../lib/berth': Berth is not "
                             "installed whole",
                             agent_name, directory.string(), directory.string()));
}

}  // namespace berth::container
