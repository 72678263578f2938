#include "container/template_store.h"

#include <atomic>
#include <cerrno>
#include <optional>
#include <utility>

#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/directories.h"
#include "base/log.h"
#include "machine/small_file.h"
#include "machine/volume_directory.h"
#include "memory/memory_image.h"
#include "memory/memory_object.h"

namespace berth::container {
namespace {

constexpr const char* record_name = "/template.json";
constexpr std::uint64_t status_block = 512;  // stat(2), st_blocks

std::unexpected<Error> no_template(const std::string& name) {
  return failure(ErrorKind::not_found, fmt::format("there is no template '{}'", name));
}

Result<std::string> checksum_of(const std::string& path) {
  return fmt::format("{:016x}", TRY(memory::memory_checksum(path)));
}

std::uint64_t file_size(const std::string& path) {
  struct stat status{};
  return ::stat(path.c_str(), &status) == 0 ? static_cast<std::uint64_t>(status.st_size) : 0;
}

}  // namespace

TemplateStore::TemplateStore(std::string state_dir, std::string memory_dir)
    : state_dir_(std::move(state_dir)), memory_dir_(std::move(memory_dir)) {}

std::string TemplateStore::directory(const std::string& name) const {
  return fmt::format("{}/templates/{}", state_dir_, name);
}

std::string TemplateStore::place(const std::string& name, const Id128& id) const {
  return fmt::format("{}/{}", directory(name), id.to_string());
}

std::string TemplateStore::devices(const TemplateRecord& record) const {
  return place(record.recipe.name, record.id) + "/devices";
}

std::vector<std::string> TemplateStore::names() const {
  std::vector<std::string> names;
  for (const std::string& name : machine::names_in(directory("")))
    if (machine::is_valid_name(name)) names.push_back(name);
  return names;
}

std::vector<TemplateRecord> TemplateStore::list() const {
  std::vector<TemplateRecord> templates;
  for (const std::string& name : names()) {
    auto found = find(name);
    if (found) {
      templates.push_back(*std::move(found));
    } else if (found.error().kind() != ErrorKind::not_found) {
      log_warning("{}", found.error().message());
    }
  }
  return templates;
}

Result<TemplateRecord> TemplateStore::find(const std::string& name) const {
  TRY(machine::check_name("template", name));
  return read(name, directory(name) + record_name);
}

Result<TemplateRecord> TemplateStore::making(const std::string& name, const Id128& id) const {
  TRY(machine::check_name("template", name));
  if (auto now = find(name); now && now->id == id) return now;
  return read(name, place(name, id) + record_name);
}

Result<TemplateRecord> TemplateStore::read(const std::string& name, const std::string& path) {
  auto text = machine::read_small_file(path);
  if (!text && text.error().kind() == ErrorKind::not_found) return no_template(name);
  if (!text) return failure(std::move(text).error());
  Result<TemplateRecord> found = decode_template_record(*text);
  if (found && found->recipe.name != name)
    found =
        failure(ErrorKind::corrupt, fmt::format("it is of the template '{}'", found->recipe.name));
  if (!found)
    return failure(std::move(found).error().with_context(fmt::format("'{}' cannot be read", path)));
  return found;
}

// --- Making one.

Result<std::string> TemplateStore::begin(const std::string& name, const Id128& id) const {
  TRY(machine::check_name("template", name));
  const std::string parent = directory("");
  TRY(make_directories(parent.substr(0, parent.size() - 1)));
  for (const std::string& path : {directory(name), place(name, id)}) {
    if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST)
      return errno_failure(errno, fmt::format("cannot make '{}'", path));
  }
  TRY(machine::sync_directory(parent));
  TRY(machine::sync_directory(directory(name)));
  return place(name, id) + "/devices";
}

Result<TemplateRecord> TemplateStore::finish(TemplateRecord record) const {
  const std::string memory_file = memory::memory_object_path(memory_dir_, record.id);
  const std::string image = place(record.recipe.name, record.id) + "/memory";
  const std::atomic<bool> stop = false;
  {
    const auto writer = TRY(memory::MemoryImageWriter::create(memory_file, image));
    TRY(writer->copy_all(stop, {}, {}));
    TRY(writer->finish());
    record.memory_bytes = writer->bytes_written();
  }
  return record_made(std::move(record), memory_file);
}

Result<TemplateRecord> TemplateStore::finish_image(TemplateRecord record) const {
  const std::string image = place(record.recipe.name, record.id) + "/memory";
  TRY(machine::sync_directory(place(record.recipe.name, record.id)));
  struct stat status{};
  if (::stat(image.c_str(), &status) == 0)
    record.memory_bytes = static_cast<std::uint64_t>(status.st_blocks) * status_block;
  return record_made(std::move(record), image);
}

Result<TemplateRecord> TemplateStore::record_made(TemplateRecord record,
                                                  const std::string& memory) const {
  const std::string& name = record.recipe.name;
  record.memory_checksum = TRY(checksum_of(memory));
  record.device_bytes = file_size(devices(record));
  const std::string text = encode(record).dump(2) + '\n';
  TRY(machine::write_small_file(place(name, record.id) + record_name, text));
  TRY(machine::write_small_file(directory(name) + record_name, text));
  return record;
}

Result<std::string> TemplateStore::memory(const TemplateRecord& record) const {
  std::string path = memory::memory_object_path(memory_dir_, record.id);
  struct stat status{};
  const bool is_there = ::stat(path.c_str(), &status) == 0;
  if (is_there && (status.st_mode & 0222U) == 0) return path;
  // One that was being loaded is begun again.
  TRY(memory::remove_memory_object(memory_dir_, record.id));
  TRY(memory::create_memory_object(memory_dir_, record.id, record.recipe.specification.memory,
                                   {.uid = ::geteuid(), .gid = ::getegid()}));
  const std::string image = place(record.recipe.name, record.id) + "/memory";
  auto loaded = memory::load_memory_image(image, path);
  if (loaded && TRY(checksum_of(path)) != record.memory_checksum) {
    loaded = failure(ErrorKind::corrupt,
                     fmt::format("'{}' is not what was written to it: delete the template '{}', "
                                 "and create it again",
                                 image, record.recipe.name));
  }
  if (loaded) loaded = memory::seal_memory_object(path);
  if (loaded) return path;
  (void)memory::remove_memory_object(memory_dir_, record.id);
  return failure(std::move(loaded).error());
}

Result<std::string> TemplateStore::checksum(const TemplateRecord& record) const {
  return checksum_of(TRY(memory(record)));
}

// --- Removing.

Result<void> TemplateStore::remove_making(const std::string& name, const std::string& id) const {
  const auto number = Id128::parse(id);
  // The memory first: without its directory nobody would know of it.
  if (number) TRY(memory::remove_memory_object(memory_dir_, *number));
  return machine::remove_tree(fmt::format("{}/{}", directory(name), id));
}

Result<void> TemplateStore::collect(const std::string& name, const std::set<Id128>& in_use) const {
  const auto record = find(name);
  if (!record && record.error().kind() != ErrorKind::not_found)
    return failure(record.error());  // nobody knows what is its own
  bool is_empty = !record;
  for (const std::string& entry : machine::names_in(directory(name))) {
    const auto id = Id128::parse(entry);
    if (!id) continue;
    if ((record && record->id == *id) || in_use.contains(*id)) {
      is_empty = false;
      continue;
    }
    TRY(remove_making(name, entry));
  }
  return is_empty ? machine::remove_tree(directory(name)) : Result<void>();
}

Result<void> TemplateStore::remove(const std::string& name) const {
  const auto record = find(name);
  if (!record && record.error().kind() == ErrorKind::not_found) return no_template(name);
  const std::string path = directory(name) + record_name;
  if (::unlink(path.c_str()) != 0)
    return errno_failure(errno, fmt::format("cannot remove '{}'", path));
  TRY(machine::sync_directory(directory(name)));
  return collect(name, {});
}

}  // namespace berth::container
