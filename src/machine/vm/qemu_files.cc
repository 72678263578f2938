#include "machine/vm/qemu_files.h"

#include <cerrno>
#include <filesystem>

#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "machine/volume_directory.h"

namespace berth::machine {

Result<void> make_qemu_directory(const std::string& directory, uid_t uid) {
  TRY(remove_tree(directory));
  if (::mkdir(directory.c_str(), 0700) != 0)
    return errno_failure(errno, fmt::format("cannot make '{}'", directory));
  if (::geteuid() == 0 && ::chown(directory.c_str(), uid, static_cast<gid_t>(-1)) != 0)
    return errno_failure(errno, fmt::format("cannot give '{}' to QEMU's user", directory));
  return {};
}

Result<void> copy_for_qemu(const std::string& from, const std::string& to, uid_t uid, gid_t gid) {
  std::error_code error;
  std::filesystem::copy_file(from, to, std::filesystem::copy_options::overwrite_existing, error);
  if (error) return errno_failure(error.value(), fmt::format("cannot copy '{}' to '{}'", from, to));
  if (::chmod(to.c_str(), 0400) != 0 || (::geteuid() == 0 && ::chown(to.c_str(), uid, gid) != 0))
    return errno_failure(errno, fmt::format("cannot give '{}' to QEMU's user", to));
  return {};
}

std::string preload_copy(const std::string& memory_file) {
  return memory_file.substr(0, memory_file.rfind('/') + 1) + "preload.so";
}

std::string qemu_version_text(const Json& info) {
  const Json version = info.is_object() ? info.value("qemu", Json::object()) : Json::object();
  if (!version.is_object()) return {};
  return fmt::format("{}.{}.{}", version.value("major", 0), version.value("minor", 0),
                     version.value("micro", 0));
}

}  // namespace berth::machine
