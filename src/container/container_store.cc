#include "container/container_store.h"

#include <cerrno>
#include <set>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/directories.h"
#include "base/fd.h"
#include "base/log.h"
#include "machine/layout.h"
#include "machine/small_file.h"
#include "machine/volume_directory.h"

namespace berth::container {
namespace {

constexpr const char* record_name = "/container.json";
constexpr const char* state_name = "/state.json";
constexpr const char* making_prefix = ".making-";
constexpr const char* removing_prefix = ".removing-";
// After those of the machines (machine_store.cc).
constexpr std::size_t id_digits_min = 4;

Result<std::uint32_t> free_uid(const std::vector<ContainerRecord>& containers,
                               std::set<std::uint32_t> taken) {
  for (const ContainerRecord& record : containers) taken.insert(record.uid);
  for (std::uint32_t uid = container_uid_first; uid < container_uid_first + container_uid_count;
       ++uid)
    if (!taken.contains(uid)) return uid;
  return failure(ErrorKind::limit,
                 fmt::format("there are {} containers already", container_uid_count));
}

std::unexpected<Error> no_container(const std::string& reference) {
  return failure(ErrorKind::not_found, fmt::format("there is no container '{}'", reference));
}

}  // namespace

ContainerStore::ContainerStore(std::string state_dir) : state_dir_(std::move(state_dir)) {}

std::string ContainerStore::directory(const std::string& name) const {
  return fmt::format("{}/containers/{}", state_dir_, name);
}

Result<void> ContainerStore::open() const {
  const std::string path = directory("");
  for (const std::string& name : machine::names_in(path)) {
    if (name.starts_with(making_prefix) || name.starts_with(removing_prefix))
      TRY(machine::remove_tree(path + name));
  }
  return {};
}

Result<ContainerIdentity> ContainerStore::new_identity(const std::set<std::uint32_t>& taken) const {
  return ContainerIdentity{.id = SystemRandom().id(), .uid = TRY(free_uid(list(), taken))};
}

Result<ContainerRecord> ContainerStore::create(
    ContainerSpecification specification, const std::string& created_at,
    const std::set<std::uint32_t>& taken, const std::optional<ContainerIdentity>& identity) const {
  TRY(check(specification));
  const std::string name = specification.name;
  const std::string parent = directory("");
  TRY(make_directories(parent.substr(0, parent.size() - 1)));
  // From the choice of the uid until the container is there, nobody else chooses one.
  const Fd lock(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock || ::flock(lock.get(), LOCK_EX) != 0)
    return errno_failure(errno, fmt::format("cannot lock '{}'", parent));
  if (machine::path_exists(directory(name))) {
    return failure(ErrorKind::already_exists,
                   fmt::format("there is a container '{}' already", name));
  }
  const ContainerIdentity is = identity ? *identity : TRY(new_identity(taken));
  ContainerRecord record{.id = is.id,
                         .uid = is.uid,
                         .created_at = created_at,
                         .specification = std::move(specification)};
  const std::string making = parent + making_prefix + name;
  TRY(machine::remove_tree(making));
  if (::mkdir(making.c_str(), 0700) != 0)
    return errno_failure(errno, fmt::format("cannot make '{}'", making));
  auto made = machine::write_small_file(making + record_name, encode(record).dump(2) + '\n');
  if (made) made = machine::rename_directory(making, directory(name));
  if (!made) {
    (void)machine::remove_tree(making);
    return failure(std::move(made).error());
  }
  TRY(machine::sync_directory(parent));
  return record;
}

std::vector<ContainerRecord> ContainerStore::list() const {
  std::vector<ContainerRecord> containers;
  for (const std::string& name : machine::names_in(directory(""))) {
    if (!machine::is_valid_name(name)) continue;
    auto found = record(name);
    if (found) {
      containers.push_back(*std::move(found));
    } else if (found.error().kind() != ErrorKind::not_found) {
      log_warning("{}", found.error().message());
    }
  }
  return containers;
}

Result<ContainerRecord> ContainerStore::find(const std::string& reference) const {
  if (machine::is_valid_name(reference)) {
    auto named = record(reference);
    if (named || named.error().kind() != ErrorKind::not_found) return named;
  }
  if (reference.size() < id_digits_min) return no_container(reference);
  std::vector<ContainerRecord> found;
  for (ContainerRecord& container : list())
    if (container.id.to_string().starts_with(reference)) found.push_back(std::move(container));
  if (found.empty()) return no_container(reference);
  if (found.size() > 1) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("the ids of {} containers begin with '{}': give more of it",
                               found.size(), reference));
  }
  return std::move(found.front());
}

Result<ContainerRecord> ContainerStore::record(const std::string& name) const {
  TRY(machine::check_name("container", name));
  const std::string path = directory(name) + record_name;
  auto text = machine::read_small_file(path);
  if (!text && text.error().kind() == ErrorKind::not_found) return no_container(name);
  if (!text) return failure(std::move(text).error());
  Result<ContainerRecord> found = decode_container_record(*text);
  if (found && found->specification.name != name)
    found = failure(ErrorKind::corrupt,
                    fmt::format("it is of the container '{}'", found->specification.name));
  if (!found)
    return failure(std::move(found).error().with_context(fmt::format("'{}' cannot be read", path)));
  return found;
}

Result<ContainerState> ContainerStore::state(const std::string& name) const {
  auto text = machine::read_small_file(directory(name) + state_name);
  if (!text && text.error().kind() == ErrorKind::not_found) return ContainerState{};
  if (!text) return failure(std::move(text).error());
  return decode_container_state(*text);
}

Result<void> ContainerStore::save_state(const std::string& name,
                                        const ContainerState& state) const {
  return machine::write_small_file(
      directory(name) + state_name,
      encode(state).dump(2, ' ', false, Json::error_handler_t::replace) + '\n');
}

Result<void> ContainerStore::remove(const std::string& name) const {
  TRY(record(name));
  const std::string removed =
      fmt::format("{}{}{}-{}", directory(""), removing_prefix, name, ::getpid());
  if (::rename(directory(name).c_str(), removed.c_str()) != 0)
    return errno_failure(errno, fmt::format("cannot remove the container '{}'", name));
  TRY(machine::sync_directory(directory("")));
  return machine::remove_tree(removed);
}

}  // namespace berth::container
