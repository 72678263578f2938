#include "machine/vm/machine_store.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <set>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "async/directories.h"
#include "machine/control_messages.h"
#include "machine/small_file.h"
#include "machine/volume_directory.h"

namespace berth::machine {
namespace {

// No name of a machine begins with a dot.
constexpr std::string_view claim_prefix = ".creating-";
constexpr std::string_view removing_prefix = ".removing-";
constexpr const char* record_name = "/machine.json";
constexpr const char* state_name = "/state.json";

// Between the ranges that systemd gives to containers and to nobody: systemd.io/UIDS-GIDS.
constexpr std::uint32_t uid_first = 1'900'000'000;
constexpr std::uint32_t uid_count = 65'536;

/// Where the disks of a machine that is being made are before they move into it.
std::string planned_name(std::string_view claim_path) {
  return fmt::format("{}/plan.json", claim_path);
}

bool is_link(const std::string& path) {
  struct stat status{};
  return ::lstat(path.c_str(), &status) == 0 && S_ISLNK(status.st_mode);
}

/// Removes what a dead process has left of a machine: its directory, and the volumes that it had
/// made for it and not moved in yet.
void clear_leftover(const StateLayout& state, const std::string& path) {
  const auto lock = try_lock(path);
  if (!lock || !*lock) return;
  if (const auto text = read_small_file(planned_name(path)); text) {
    const auto plan = parse_json(*text);
    if (plan && plan->is_array()) {
      for (const Json& volume : *plan) {
        if (!volume.is_string() || !is_valid_name(volume.get<std::string>())) continue;
        const std::string volume_path = state.volume(volume.get<std::string>());
        if (!is_link(volume_path)) (void)remove_tree(volume_path);
      }
    }
  }
  (void)remove_tree(path);
}

void clear_machine_leftovers(const StateLayout& state) {
  for (const std::string& name : names_in(state.machines())) {
    if (name.starts_with(claim_prefix) || name.starts_with(removing_prefix))
      clear_leftover(state, state.machines() + '/' + name);
  }
}

/// The link by which a machine's own disk is a volume.
Result<void> link_disk(const StateLayout& state, const std::string& machine,
                       const std::string& disk) {
  const std::string link = state.volume(own_volume_name(machine, disk));
  const std::string target = fmt::format("../machines/{}/disks/{}", machine, disk);
  std::error_code error;
  if (is_link(link) && std::filesystem::read_symlink(link, error) == target) return {};
  if (::symlink(target.c_str(), link.c_str()) != 0)
    return errno_failure(errno, fmt::format("cannot make the link '{}'", link));
  return {};
}

/// A uid that no machine has.
Result<std::uint32_t> free_uid(const MachineStore& store) {
  std::set<std::uint32_t> taken;
  for (const MachineRecord& record : TRY(store.list())) taken.insert(record.uid);
  for (std::uint32_t uid = uid_first; uid < uid_first + uid_count; ++uid) {
    if (!taken.contains(uid)) return uid;
  }
  return failure(ErrorKind::limit, fmt::format("there are {} machines already", uid_count));
}

}  // namespace

std::string own_volume_name(std::string_view machine, std::string_view disk) {
  return fmt::format("{}.{}", machine, disk);
}

MachineStore::MachineStore(std::string state_dir) : state_{std::move(state_dir)} {}

MachineStore::Claim::Claim(StateLayout state, std::string name, std::string path, Fd lock)
    : state_(std::move(state)),
      name_(std::move(name)),
      path_(std::move(path)),
      lock_(std::move(lock)) {}

MachineStore::Claim::~Claim() {
  if (!lock_) return;
  lock_ = Fd();
  clear_leftover(state_, path_);
}

Result<MachineStore::Claim> MachineStore::claim(const std::string& name) const {
  TRY(check_name("machine", name));
  if (name.size() > machine_name_length_max) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("the name of a machine has at most {} characters; '{}' has {}",
                               machine_name_length_max, name, name.size()));
  }
  TRY(make_directories(state_.machines()));
  clear_machine_leftovers(state_);
  if (path_exists(state_.machine(name))) {
    return failure(ErrorKind::already_exists, fmt::format("there is a machine '{}' already", name));
  }
  const std::string path = fmt::format("{}/{}{}", state_.machines(), claim_prefix, name);
  if (::mkdir(path.c_str(), 0700) != 0) {
    if (errno == EEXIST) {
      return failure(ErrorKind::in_use,
                     fmt::format("somebody is making the machine '{}' already", name));
    }
    return errno_failure(errno, fmt::format("cannot make '{}'", path));
  }
  auto lock = TRY(try_lock(path));
  if (!lock)
    return failure(ErrorKind::in_use, fmt::format("somebody is making '{}' already", name));
  TRY(make_directories(path + "/disks"));
  return Claim(state_, name, path, std::move(*lock));
}

Result<void> MachineStore::Claim::plan(const std::vector<std::string>& volumes) {
  return write_small_file(planned_name(path_), format_json(Json(volumes)));
}

Result<MachineRecord> MachineStore::Claim::publish(MachineRecord record) {
  const std::string prefix = name_ + '.';
  std::vector<std::string> own;
  for (const MachineDisk& disk : record.disks) {
    if (!disk.own) continue;
    own.push_back(disk.volume.substr(prefix.size()));
    const std::string target = fmt::format("{}/disks/{}", path_, own.back());
    if (path_exists(target)) continue;  // it came with the directory
    if (::rename(state_.volume(disk.volume).c_str(), target.c_str()) != 0)
      return errno_failure(
          errno, fmt::format("cannot move the volume '{}' into '{}'", disk.volume, path_));
  }
  // From the choice of the uid until the machine is there, nobody else chooses one.
  const Fd machines(::open(state_.machines().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!machines || ::flock(machines.get(), LOCK_EX) != 0)
    return errno_failure(errno, fmt::format("cannot lock '{}'", state_.machines()));
  record.uid = TRY(free_uid(MachineStore(state_.state_dir)));
  TRY(write_small_file(path_ + record_name, encode(record).dump(2) + '\n'));
  TRY(sync_directory(path_ + "/disks"));
  ::unlink(planned_name(path_).c_str());
  TRY(sync_directory(path_));
  if (::rename(path_.c_str(), state_.machine(name_).c_str()) != 0)
    return errno_failure(errno, fmt::format("cannot give the machine '{}' its name", name_));
  lock_ = Fd();
  TRY(sync_directory(state_.machines()));
  for (const std::string& disk : own) TRY(link_disk(state_, name_, disk));
  TRY(sync_directory(state_.volumes()));
  return record;
}

Result<std::vector<MachineRecord>> MachineStore::list() const {
  std::vector<MachineRecord> machines;
  for (const std::string& name : names_in(state_.machines())) {
    if (!is_valid_name(name) || !path_exists(state_.machine(name) + record_name)) continue;
    machines.push_back(TRY(record(name)));
  }
  return machines;
}

Result<MachineRecord> MachineStore::record(const std::string& name) const {
  TRY(check_name("machine", name));
  const std::string path = state_.machine(name) + record_name;
  auto text = read_small_file(path);
  if (!text && text.error().kind() == ErrorKind::not_found)
    return failure(ErrorKind::not_found, fmt::format("there is no machine '{}'", name));
  if (!text) return failure(std::move(text).error());
  auto json = parse_json(*text);
  auto record = json ? decode_machine_record(*json) : failure(std::move(json).error());
  if (!record)
    return failure(
        std::move(record).error().with_context(fmt::format("'{}' cannot be read", path)));
  return record;
}

Result<void> MachineStore::save(const MachineRecord& record) const {
  return write_small_file(state_.machine(record.specification.name) + record_name,
                          encode(record).dump(2) + '\n');
}

Result<MachineState> MachineStore::state(const std::string& name) const {
  auto text = read_small_file(state_.machine(name) + state_name);
  if (!text && text.error().kind() == ErrorKind::not_found) return MachineState{};
  if (!text) return failure(std::move(text).error());
  const Json json = TRY(parse_json(*text));
  MachineState state;
  state.running = TRY(flag_param(json, "running"));
  state.suspended = TRY(flag_param(json, "suspended"));
  state.last_end = TRY(text_param(json, "last_end"));
  state.last_end_at = TRY(text_param(json, "last_end_at"));
  state.crashed = TRY(flag_param(json, "crashed"));
  state.clean = TRY(flag_param(json, "clean"));
  return state;
}

Result<void> MachineStore::save_state(const std::string& name, const MachineState& state) const {
  const Json json = {{"running", state.running},   {"suspended", state.suspended},
                     {"last_end", state.last_end}, {"last_end_at", state.last_end_at},
                     {"crashed", state.crashed},   {"clean", state.clean}};
  return write_small_file(state_.machine(name) + state_name,
                          json.dump(2, ' ', false, Json::error_handler_t::replace) + '\n');
}

Result<void> MachineStore::mend_links() const {
  for (const MachineRecord& record : TRY(list())) {
    for (const MachineDisk& disk : record.disks) {
      const std::string& machine = record.specification.name;
      if (disk.own) TRY(link_disk(state_, machine, disk.volume.substr(machine.size() + 1)));
    }
  }
  for (const std::string& volume : names_in(state_.volumes())) {
    const std::string path = state_.volume(volume);
    struct stat status{};
    if (is_link(path) && ::stat(path.c_str(), &status) != 0 && errno == ENOENT)
      ::unlink(path.c_str());
  }
  return {};
}

Result<void> MachineStore::remove(const std::string& name) const {
  const MachineRecord machine = TRY(record(name));
  const std::string removed =
      fmt::format("{}/{}{}-{}", state_.machines(), removing_prefix, name, ::getpid());
  if (::rename(state_.machine(name).c_str(), removed.c_str()) != 0)
    return errno_failure(errno, fmt::format("cannot remove the machine '{}'", name));
  TRY(sync_directory(state_.machines()));
  for (const MachineDisk& disk : machine.disks)
    if (disk.own) ::unlink(state_.volume(disk.volume).c_str());
  return remove_tree(removed);
}

}  // namespace berth::machine
