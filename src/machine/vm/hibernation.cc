#include "machine/vm/hibernation.h"

#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/fd.h"
#include "base/read_ahead.h"
#include "machine/control_messages.h"
#include "machine/small_file.h"
#include "machine/vm/device_state.h"
#include "machine/volume_directory.h"
#include "memory/process_maps.h"

namespace berth::machine {
namespace {

constexpr const char* devices_name = "hibernated-devices";
constexpr std::size_t programs_max = 1024;  // Debian's QEMU has 50

/// No way out of the guest's directory.
Result<std::string> file_name_param(const Json& json, const char* name) {
  std::string file = TRY(text_param(json, name));
  if (!file.empty() && !file.contains('/') && file != "." && file != "..") return file;
  return failure(ErrorKind::invalid_argument, fmt::format("{}: expected the name of a file", name));
}

void read_ahead_programs(const std::map<std::string, std::uint64_t>& programs) {
  for (const auto& [path, length] : programs) {
    const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat status{};
    if (file && ::fstat(file.get(), &status) == 0 && S_ISREG(status.st_mode))
      (void)read_ahead(file, 0, std::min(length, static_cast<std::uint64_t>(status.st_size)));
  }
}

}  // namespace

Json encode(const SavedGuestState& saved) {
  return {{"qemu", saved.qemu},           {"accelerator", saved.accelerator},
          {"memory", saved.memory},       {"pages", saved.pages},
          {"devices", saved.devices},     {"device_checksum", saved.device_checksum},
          {"pause", encode(saved.pause)}, {"programs", saved.programs}};
}

Result<SavedGuestState> decode_saved_guest_state(const Json& json) {
  SavedGuestState saved;
  saved.qemu = TRY(text_param(json, "qemu"));
  saved.accelerator = TRY(text_param(json, "accelerator"));
  saved.memory = TRY(required_number_param(json, "memory"));
  saved.pages = TRY(file_name_param(json, "pages"));
  saved.devices = TRY(file_name_param(json, "devices"));
  saved.device_checksum = TRY(required_number_param(json, "device_checksum"));
  saved.pause = TRY(decode_pause_record(json.value("pause", Json::object())));
  const Json programs = json.value("programs", Json::object());
  const bool are_lengths = programs.is_object() && programs.size() <= programs_max &&
                           std::ranges::all_of(programs, &Json::is_number_unsigned);
  if (!are_lengths)
    return failure(ErrorKind::invalid_argument, "programs: expected paths and lengths");
  saved.programs = programs.get<std::map<std::string, std::uint64_t>>();
  return saved;
}

std::map<std::string, std::uint64_t> programs_of(pid_t process) {
  auto maps = memory::ProcessMaps::open(process, "program");
  auto programs = maps ? maps->programs() : failure(maps.error());
  return programs ? *std::move(programs) : std::map<std::string, std::uint64_t>();
}

std::string hibernation_file(std::string_view directory) {
  return fmt::format("{}/hibernation.json", directory);
}

bool is_hibernated(std::string_view directory) { return path_exists(hibernation_file(directory)); }

Result<std::string> read_hibernation_file(const std::string& directory) {
  return read_small_file(hibernation_file(directory));
}

Result<void> save_devices(const std::string& directory, std::string_view devices,
                          SavedGuestState& saved) {
  saved.devices = devices_name;
  saved.device_checksum = checksum64(as_bytes(devices));
  auto written = write_small_file(fmt::format("{}/{}", directory, devices_name), devices);
  if (!written) remove_saved_devices(directory);
  return written;
}

Result<void> write_hibernation_file(const std::string& directory, const Json& document) {
  const std::string path = hibernation_file(directory);
  auto written = write_small_file(path, document.dump(2) + '\n');
  if (written) return written;
  ::unlink(path.c_str());  // it may be there, and not durable
  remove_saved_devices(directory);
  return written;
}

Result<std::string> saved_devices(const std::string& directory, const SavedGuestState& saved) {
  std::string path = fmt::format("{}/{}", directory, saved.devices);
  const std::string devices = TRY(read_device_state(path));
  if (checksum64(as_bytes(devices)) == saved.device_checksum) return path;
  return failure(ErrorKind::corrupt, fmt::format("'{}' is not what was written to it", path));
}

void read_ahead_saved(const std::string& directory) {
  // The daemon has it mapped, but for what it has changed of its data.
  read_ahead_programs(programs_of(::getpid()));
  const auto text = read_hibernation_file(directory);
  const auto json = text ? parse_json(*text) : failure(text.error());
  const auto saved = json ? decode_saved_guest_state(*json) : failure(json.error());
  if (!saved) return;
  read_ahead_programs(saved->programs);
  PageFiles(directory).read_ahead();
}

Result<void> end_hibernation(const std::string& directory) {
  const std::string path = hibernation_file(directory);
  if (::unlink(path.c_str()) != 0)
    return errno_failure(errno, fmt::format("cannot remove '{}'", path));
  return sync_directory(directory);
}

void remove_saved_devices(const std::string& directory) {
  ::unlink(fmt::format("{}/{}", directory, devices_name).c_str());
}

void remove_saved(const std::string& directory) {
  remove_saved_devices(directory);
  PageFiles(directory).remove_all();
}

Result<void> discard_hibernation(const std::string& directory) {
  TRY(end_hibernation(directory));
  remove_saved(directory);
  return {};
}

}  // namespace berth::machine
