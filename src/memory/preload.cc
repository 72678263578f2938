#include "memory/preload.h"

#include <filesystem>
#include <string_view>
#include <system_error>

#include <fmt/format.h>

#include "memory/preload/names.h"

namespace berth::memory {
namespace {

namespace fs = std::filesystem;

Result<std::vector<std::string>> environment_of(const std::string& library,
                                                std::string_view variable, const std::string& file,
                                                const std::string& channel) {
  if (!library.starts_with('/') || library.find_first_of(" :") != std::string::npos) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' cannot be preloaded: install Berth under an absolute path "
                               "without blanks and colons",
                               library));
  }
  std::vector environment{fmt::format("LD_PRELOAD={}", library),
                          fmt::format("{}={}", variable, file)};
  if (!channel.empty())
    environment.push_back(fmt::format("{}={}", memory_channel_variable, channel));
  return environment;
}

}  // namespace

Result<std::string> find_preload() {
  std::error_code error;
  const fs::path directory = fs::read_symlink("/proc/self/exe", error).parent_path();
  if (error) return errno_failure(error.value(), "cannot read /proc/self/exe");
  for (const fs::path& place : {directory, directory.parent_path() / "lib/berth"}) {
    fs::path library = place / preload_library_name;
    if (fs::is_regular_file(library, error)) return library.string();
  }
  return failure(ErrorKind::not_found,
                 fmt::format("{} is neither in '{}' nor in '{}/../lib/berth': Berth is not "
                             "installed whole",
                             preload_library_name, directory.string(), directory.string()));
}

Result<std::vector<std::string>> preload_environment(const std::string& library,
                                                     const std::string& memory_file,
                                                     const std::string& channel) {
  return environment_of(library, memory_object_variable, memory_file, channel);
}

Result<std::vector<std::string>> clone_environment(const std::string& library,
                                                   const std::string& template_file,
                                                   const std::string& channel) {
  return environment_of(library, memory_template_variable, template_file, channel);
}

}  // namespace berth::memory
