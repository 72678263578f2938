#include "container/initramfs.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <system_error>

#include <fmt/format.h>

#include "container/cpio.h"
#include "container/decompress.h"

namespace berth::container {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t file_size_max = std::size_t{64} << 20;  // bytes, of a module or the agent
constexpr int console_major = 5;
constexpr int console_minor = 1;

/// Whole; distributions have .ko, .ko.xz, .ko.zst, .ko.gz.
Result<std::string> read_unpacked(const fs::path& path) {
  return decompress_file(path, file_size_max);
}

/// Module names take - and _ for the same.
std::string normalized(std::string_view name) {
  std::string result(name);
  std::ranges::replace(result, '-', '_');
  return result;
}

/// "virtio_rng" of ".../virtio-rng.ko.xz"; "" for what is no module.
std::string module_name(const fs::path& path) {
  const std::string file = path.filename().string();
  const std::size_t end = file.find(".ko");
  return end == std::string::npos ? "" : normalized(file.substr(0, end));
}

struct Kernel {
  std::map<std::string, fs::path> modules;
  std::set<std::string> built_in;
};

Result<Kernel> look_at_kernel(const fs::path& directory) {
  Kernel kernel;
  std::error_code error;
  for (auto entry = fs::recursive_directory_iterator(directory, error);
       !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    const std::string name = module_name(entry->path());
    if (name.empty() || !entry->is_regular_file()) continue;
    // Of several, the first by name: the order of a directory is nobody's.
    fs::path& path = kernel.modules[name];
    if (path.empty() || entry->path() < path) path = entry->path();
  }
  if (error) {
    return errno_failure(error.value(),
                         fmt::format("cannot look for modules in {}", directory.string()));
  }
  const std::string list = TRY(read_unpacked(directory / "modules.builtin"));
  for (std::size_t begin = 0; begin < list.size();) {
    const std::size_t end = std::min(list.find('\n', begin), list.size());
    kernel.built_in.insert(module_name(list.substr(begin, end - begin)));
    begin = end + 1;
  }
  return kernel;
}

/// What is said in the section .modinfo: texts with a zero byte before and after them.
std::vector<std::string> dependencies_of(std::string_view module) {
  constexpr std::string_view key("\0depends=", 9);
  std::vector<std::string> names;
  const std::size_t found = module.find(key);
  if (found == std::string_view::npos) return names;
  std::string_view list = module.substr(found + key.size());
  list = list.substr(0, list.find('\0'));
  while (!list.empty()) {
    const std::size_t end = std::min(list.find(','), list.size());
    if (end > 0) names.push_back(normalized(list.substr(0, end)));
    list.remove_prefix(std::min(end + 1, list.size()));
  }
  return names;
}

struct LoadedModule {
  fs::path path;
  std::string content;
};

/// In the order in which they are loaded.
Result<std::vector<LoadedModule>> collect(const fs::path& directory,
                                          const std::vector<std::string>& names) {
  const Kernel kernel = TRY(look_at_kernel(directory));
  std::vector<LoadedModule> order;
  std::set<std::string> seen;
  const std::function<Result<void>(const std::string&)> visit =
      [&](const std::string& name) -> Result<void> {
    if (!seen.insert(name).second) return {};
    const auto found = kernel.modules.find(name);
    if (found == kernel.modules.end()) {
      if (kernel.built_in.contains(name)) return {};
      return failure(ErrorKind::not_found,
                     fmt::format("the kernel of {} has no module {}", directory.string(), name));
    }
    std::string content = TRY(read_unpacked(found->second));
    for (const std::string& dependency : dependencies_of(content)) TRY(visit(dependency));
    order.push_back({found->second, std::move(content)});
    return {};
  };
  for (const std::string& name : names) TRY(visit(normalized(name)));
  return order;
}

}  // namespace

Result<std::vector<fs::path>> modules_to_load(const fs::path& modules,
                                              const std::vector<std::string>& names) {
  std::vector<fs::path> paths;
  for (LoadedModule& module : TRY(collect(modules, names))) paths.push_back(std::move(module.path));
  return paths;
}

Result<std::string> make_initramfs(const InitramfsSpec& spec) {
  const std::string agent = TRY(read_unpacked(spec.agent));
  const std::vector<LoadedModule> modules = TRY(collect(spec.modules, spec.names));
  CpioWriter archive;
  // What the agent mounts on (src/agent/program/boot.h).
  for (const char* name : {"dev", "image", "modules", "overlay", "proc", "root", "sys"}) {
    archive.add_directory(name, 0755);
  }
  // The kernel opens it before there is a devtmpfs.
  archive.add_character_device("dev/console", 0600, console_major, console_minor);
  archive.add_file("init", 0755, as_bytes(agent));
  std::string order;
  for (const LoadedModule& module : modules) {
    const std::string name = module_name(module.path) + ".ko";
    archive.add_file("modules/" + name, 0644, as_bytes(module.content));
    order += name + '\n';
  }
  archive.add_file("modules/order", 0644, as_bytes(order));
  return archive.finish();
}

}  // namespace berth::container
