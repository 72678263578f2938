#include "control/cli/container_copy.h"

#include <array>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "control/cli/attach.h"
#include "control/cli/inspect_awake.h"
#include "control/cli/render.h"
#include "control/exit_code.h"

namespace berth::control::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

int report(const Error& error) {
  fmt::print(stderr, "berth: {}\n", render_error(error));
  return exit_code(error.kind());
}

struct Place {
  std::string container;  // "" for this host
  std::string path;
};

/// "web:/etc" is the container's; what has a slash before its first colon, or none, is a path here.
Place parse_place(const std::string& text) {
  const std::size_t colon = text.find(':');
  if (colon == std::string::npos || colon == 0 || text.find('/') < colon)
    return {.container = {}, .path = text};
  std::string path = text.substr(colon + 1);
  if (!path.starts_with('/')) path.insert(path.begin(), '/');
  return {.container = text.substr(0, colon), .path = path};
}

/// The last name in a path, without slashes behind it.
std::string last_name(std::string path) {
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  return fs::path(path).filename().string();
}

/// tar's: gives the first name in the archive another one.
std::string renaming(const std::string& from, const std::string& to) {
  const auto quoted = [](const std::string& name, std::string_view special) {
    std::string text;
    for (const char c : name) {
      if (special.contains(c)) text += '\\';
      text += c;
    }
    return text;
  };
  return fmt::format("--transform=flags=rSH;s,^{}\\(/\\|$\\),{}\\1,", quoted(from, "\\.*[]^$,"),
                     quoted(to, "\\&,"));
}

/// tar, at one end of a pipe; the other is ours, in place of a standard stream.
class Tar {
 public:
  enum class Side : std::uint8_t { packs, unpacks };
  static Result<Tar> start(std::vector<std::string> arguments, Side side) {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) return errno_failure(errno, "cannot make a pipe");
    const Fd reading(ends[0]);
    const Fd writing(ends[1]);
    std::vector<char*> pointers;
    arguments.insert(arguments.begin(), "tar");
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    const int ours = side == Side::packs ? STDIN_FILENO : STDOUT_FILENO;
    const int theirs = side == Side::packs ? STDOUT_FILENO : STDIN_FILENO;
    const Fd& kept = side == Side::packs ? reading : writing;
    const Fd& given = side == Side::packs ? writing : reading;
    const pid_t pid = ::fork();
    if (pid < 0) return errno_failure(errno, "cannot fork");
    if (pid == 0) {
      ::dup2(given.get(), theirs);
      ::execvp("tar", pointers.data());
      ::_exit(exit_failed);
    }
    if (::dup2(kept.get(), ours) < 0) return errno_failure(errno, "cannot use a pipe");
    return Tar(pid, ours);
  }
  /// Closes our end, and waits: whether it has done its work.
  bool finish() const {
    ::close(ours_);
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }

 private:
  Tar(pid_t pid, int ours) : pid_(pid), ours_(ours) {}
  pid_t pid_;
  int ours_;
};

Result<AttachPoint> awake_attach_point(const ApiClient& client, const std::string& container) {
  return attach_point(client, TRY(inspect_awake(client, container)));
}

/// Whether an archive could be unpacked there: tried with one that has nothing in it.
bool is_directory_there(const AttachPoint& at, const std::string& path) {
  constexpr std::size_t empty_tar = 1024;
  return run_attached(at, {{"copy_in", {{"path", path}}}},
                      {.quiet = true, .fixed_input = std::string(empty_tar, '\0')}) == 0;
}

Result<int> copy_out(const AttachPoint& at, const Place& from, const std::string& to,
                     bool keep_owners) {
  const Json request = {{"copy_out", {{"path", from.path}}}};
  if (to == "-") return run_attached(at, request, {});
  std::vector<std::string> arguments = {"-x",
                                        "-p",
                                        "-f",
                                        "-",
                                        "--warning=no-unknown-keyword",
                                        keep_owners ? "--same-owner" : "--no-same-owner"};
  const std::string name = last_name(from.path);
  std::string directory = to;
  if (!fs::is_directory(to)) {
    directory = fs::path(absolute_path(to)).parent_path().string();
    if (!fs::is_directory(directory))
      return failure(ErrorKind::not_found, fmt::format("there is no directory '{}'", directory));
    arguments.push_back(renaming(name, last_name(to)));
  }
  arguments.insert(arguments.begin(), {"-C", directory});
  const Tar tar = TRY(Tar::start(std::move(arguments), Tar::Side::unpacks));
  const int code = run_attached(at, request, {});
  if (!tar.finish() && code == 0)
    return failure(ErrorKind::io_error, fmt::format("tar could not unpack it in '{}'", directory));
  return code;
}

Result<int> copy_in(const AttachPoint& at, const std::string& from, const Place& to,
                    bool keep_owners) {
  const auto request = [&](const std::string& path) -> Json {
    return {{"copy_in", {{"path", path}, {"keep_owners", keep_owners}}}};
  };
  if (from == "-") return run_attached(at, request(to.path), {.input = true});
  struct stat status{};
  if (::lstat(from.c_str(), &status) != 0)
    return errno_failure(errno, fmt::format("cannot look at '{}'", from));
  const fs::path absolute = absolute_path(from);
  const std::string name = absolute.filename().string();
  std::vector<std::string> arguments = {
      "-C", absolute.parent_path().string(), "--format=pax", "-c", "-f", "-", "--", name};
  const bool is_directory = is_directory_there(at, to.path);
  std::string directory = to.path;
  if (!is_directory) {
    if (to.path.ends_with('/'))
      return failure(ErrorKind::not_found, fmt::format("there is no directory '{}'", to.path));
    directory = fs::path(to.path).parent_path().string();
    arguments.insert(arguments.begin(), renaming(name, last_name(to.path)));
  }
  const Tar tar = TRY(Tar::start(std::move(arguments), Tar::Side::packs));
  const int code = run_attached(at, request(directory), {.input = true});
  if (!tar.finish() && code == 0)
    return failure(ErrorKind::io_error, fmt::format("tar could not pack '{}'", from));
  return code;
}

}  // namespace

int copy_container_files(const ParsedLine& line, const ApiClient& client) {
  const Place from = parse_place(line.text("FROM"));
  const Place to = parse_place(line.text("TO"));
  if (from.container.empty() == to.container.empty()) {
    return report(Error(ErrorKind::invalid_argument,
                        "one of both has to be CONTAINER:PATH, and the other one a path here"));
  }
  const auto at = awake_attach_point(client, from.container + to.container);
  if (!at) return report(at.error());
  const bool keep_owners = line.has("--archive");
  const auto copied = to.container.empty() ? copy_out(*at, from, to.path, keep_owners)
                                           : copy_in(*at, from.path, to, keep_owners);
  return copied ? *copied : report(copied.error());
}

}  // namespace berth::control::cli
