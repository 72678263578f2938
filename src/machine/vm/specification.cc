#include "machine/vm/specification.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "base/units.h"
#include "disk/types.h"
#include "machine/vm/specification_rules.h"

namespace berth::machine {
namespace {

using std::string_view_literals::operator""sv;

constexpr std::size_t shown_bytes_max = 60;

constexpr std::array machine_keys = {"name"sv,  "cpus"sv,      "memory"sv,     "machine"sv,
                                     "cpu"sv,   "autostart"sv, "on_crash"sv,   "stop_timeout"sv,
                                     "vnc"sv,   "agent"sv,     "kernel"sv,     "disk"sv,
                                     "cdrom"sv, "network"sv,   "cloud_init"sv, "limits"sv};
constexpr std::array kernel_keys = {"image"sv, "initrd"sv, "command_line"sv};
constexpr std::array disk_keys = {"name"sv,       "image"sv,      "size"sv,     "volume"sv,
                                  "over_image"sv, "block_size"sv, "read_only"sv};
constexpr std::array cdrom_keys = {"image"sv};
constexpr std::array network_keys = {"mode"sv, "forward"sv, "tap"sv, "mac"sv};
constexpr std::array cloud_init_keys = {"user_data"sv, "meta_data"sv, "network_config"sv};
constexpr std::array limit_keys = {"cpus"sv, "memory"sv};

/// Levenshtein's distance: how many letters have to be put in, left out or exchanged.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t exchanged = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({exchanged, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

std::string unknown_key(std::string_view key, std::span<const std::string_view> known) {
  std::string message = fmt::format("there is no key {}", describe_text(key));
  const auto distance_to = [&](std::string_view other) { return distance(key, other); };
  if (key.size() <= 2 * shown_bytes_max) {
    const auto nearest = std::ranges::min(known, {}, distance_to);
    if (distance_to(nearest) <= 1 + nearest.size() / 4)
      message += fmt::format(": did you mean '{}'?", nearest);
  }
  return message + fmt::format(" (known here: {})", fmt::join(known, ", "));
}

/// Reads the members of one table into a structure. After the first mistake, of whatever table, it
/// reads nothing any more.
class TableReader {
 public:
  TableReader(const Json& table, std::string place, std::span<const std::string_view> keys,
              std::optional<Misfit>& misfit)
      : table_(table), place_(std::move(place)), misfit_(misfit) {
    if (!table_.is_object()) {
      refuse_here("a table", table_);
      return;
    }
    for (const auto& [key, value] : table_.items())
      if (std::ranges::find(keys, key) == keys.end()) refuse(key, unknown_key(key, keys));
  }

  /// The member, or nothing if it is absent or null.
  const Json* find(const char* key) const {
    if (misfit_) return nullptr;
    const auto found = table_.find(key);
    return found == table_.end() || found->is_null() ? nullptr : &*found;
  }
  std::string place_of(std::string_view key) const { return fmt::format("{}/{}", place_, key); }
  void refuse(std::string_view key, std::string message) {
    if (!misfit_) misfit_ = Misfit{place_of(key), std::move(message)};
  }
  void expected(std::string_view key, std::string_view what, const Json& found) {
    refuse(key, fmt::format("expected {}, found {}", what, describe(found)));
  }

  void read(const char* key, std::string& into) {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_string()) return expected(key, "a text", *value);
    into = value->get<std::string>();
  }
  void read(const char* key, bool& into) {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_boolean()) return expected(key, "true or false", *value);
    into = value->get<bool>();
  }
  void read(const char* key, std::uint32_t& into) {
    const Json* value = find(key);
    if (value == nullptr) return;
    const auto number = whole_number(*value);
    if (!number || *number > std::numeric_limits<std::uint32_t>::max())
      return expected(key, "a whole number, 0 or more", *value);
    into = static_cast<std::uint32_t>(*number);
  }
  void read(const char* key, double& into) {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_number()) return expected(key, "a number", *value);
    into = value->get<double>();
  }
  void read_size(const char* key, std::uint64_t& into) {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (const auto number = whole_number(*value)) {
      into = *number;
      return;
    }
    const auto size = value->is_string() ? parse_size(value->get_ref<const std::string&>())
                                         : failure(ErrorKind::invalid_argument, "");
    if (!size) return expected(key, "a size such as \"1G\"", *value);
    into = *size;
  }
  /// One of two words.
  template <typename Enum>
  void read(const char* key, Enum& into, std::string_view first, Enum first_value,
            std::string_view second, Enum second_value) {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (*value == first)
      into = first_value;
    else if (*value == second)
      into = second_value;
    else
      expected(key, fmt::format("\"{}\" or \"{}\"", first, second), *value);
  }
  /// Each element of an array.
  template <typename Read>
  void each(const char* key, std::string_view what, Read read) {
    const Json* array = find(key);
    if (array == nullptr) return;
    if (!array->is_array()) return expected(key, what, *array);
    for (std::size_t i = 0; i < array->size() && !misfit_; ++i)
      read((*array)[i], fmt::format("{}/{}", place_of(key), i));
  }

 private:
  static std::optional<std::uint64_t> whole_number(const Json& value) {
    if (value.is_number_unsigned()) return value.get<std::uint64_t>();
    if (value.is_number_integer() && value.get<std::int64_t>() >= 0)
      return static_cast<std::uint64_t>(value.get<std::int64_t>());
    return std::nullopt;
  }
  void refuse_here(std::string_view what, const Json& found) {
    if (!misfit_)
      misfit_ = Misfit{place_, fmt::format("expected {}, found {}", what, describe(found))};
  }

  const Json& table_;
  const std::string place_;
  std::optional<Misfit>& misfit_;
};

class Decoder {
 public:
  explicit Decoder(std::string_view directory) : directory_(directory) {}

  Decoded run(const Json& json) {
    TableReader table(json, "", machine_keys, misfit_);
    for (const char* required : {"name", "memory"})
      if (!misfit_ && table.find(required) == nullptr)
        misfit_ = Misfit{"", fmt::format("the key '{}' is missing", required)};
    table.read("name", machine_.name);
    table.read("cpus", machine_.cpus);
    table.read_size("memory", machine_.memory);
    table.read("machine", machine_.machine_type);
    table.read("cpu", machine_.cpu_model);
    table.read("autostart", machine_.autostart);
    using OnCrash = MachineSpecification::OnCrash;
    table.read("on_crash", machine_.on_crash, "restart", OnCrash::restart, "preserve",
               OnCrash::preserve);
    table.read("stop_timeout", machine_.stop_timeout_s);
    table.read("vnc", machine_.vnc);
    table.read("agent", machine_.agent);
    if (const Json* kernel = table.find("kernel")) read_kernel(*kernel);
    table.each(
        "disk", "an array of tables ([[disk]])",
        [this](const Json& value, std::string place) { read_disk(value, std::move(place)); });
    table.each("cdrom", "an array of tables ([[cdrom]])",
               [this](const Json& value, std::string place) {
                 TableReader cdrom(value, std::move(place), cdrom_keys, misfit_);
                 read_path(cdrom, "image", machine_.cdroms.emplace_back().image);
               });
    read_networks(table);
    if (const Json* cloud_init = table.find("cloud_init")) read_cloud_init(*cloud_init);
    if (const Json* limits = table.find("limits")) {
      TableReader reader(*limits, "/limits", limit_keys, misfit_);
      reader.read("cpus", machine_.limits.cpus);
      reader.read_size("memory", machine_.limits.memory);
    }
    if (!misfit_) misfit_ = find_misfit(machine_);
    return {std::move(machine_), std::move(misfit_)};
  }

 private:
  void read_path(TableReader& table, const char* key, std::string& into) {
    table.read(key, into);
    if (!into.empty() && !into.starts_with('/') && !directory_.empty())
      into = fmt::format("{}{}{}", directory_, directory_.ends_with('/') ? "" : "/", into);
  }

  void read_kernel(const Json& value) {
    TableReader kernel(value, "/kernel", kernel_keys, misfit_);
    if (!misfit_ && kernel.find("image") == nullptr)
      misfit_ = Misfit{"/kernel", "the key 'image' is missing"};
    read_path(kernel, "image", machine_.kernel.image);
    read_path(kernel, "initrd", machine_.kernel.initrd);
    kernel.read("command_line", machine_.kernel.command_line);
  }

  void read_disk(const Json& value, std::string place) {
    DiskSpecification& disk = machine_.disks.emplace_back();
    TableReader table(value, std::move(place), disk_keys, misfit_);
    disk.name = fmt::format("disk{}", machine_.disks.size() - 1);
    table.read("name", disk.name);
    table.read("volume", disk.volume);
    table.read_size("size", disk.size);
    std::uint64_t block_size = 0;
    table.read_size("block_size", block_size);
    if (block_size > disk::block_size_max)
      table.refuse("block_size", fmt::format("expected at most {}, found {} bytes",
                                             format_size(disk::block_size_max), block_size));
    disk.block_size = static_cast<std::uint32_t>(block_size);
    read_path(table, "image", disk.image);
    table.read("over_image", disk.over_image);
    table.read("read_only", disk.read_only);
  }

  void read_networks(TableReader& table) {
    if (table.find("network") == nullptr) {
      machine_.networks.emplace_back();
      return;
    }
    bool none = false;
    table.each("network", "an array of tables ([[network]])",
               [this, &none](const Json& value, std::string place) {
                 none |= read_network(value, std::move(place));
               });
    if (none && !machine_.networks.empty())
      table.refuse("network", "mode \"none\" is for a machine without any other network");
  }

  /// Whether it says that there is none.
  bool read_network(const Json& value, std::string place) {
    NetworkSpecification network;
    TableReader table(value, std::move(place), network_keys, misfit_);
    const Json* mode = table.find("mode");
    const bool none = mode != nullptr && *mode == "none";
    if (mode != nullptr && *mode == "tap")
      network.mode = NetworkSpecification::Mode::tap;
    else if (mode != nullptr && !none && *mode != "user")
      table.expected("mode", R"("user", "tap" or "none")", *mode);
    table.each("forward", "an array of texts", [&](const Json& text, const std::string& here) {
      const auto forward =
          text.is_string() ? parse_forward(text.get_ref<const std::string&>()) : std::nullopt;
      if (forward)
        network.forwards.push_back(*forward);
      else
        misfit_ =
            Misfit{here, fmt::format("expected [tcp:|udp:][ADDRESS:]HOST_PORT:GUEST_PORT with "
                                     "a numeric IPv4 address and ports from 1 to 65535, "
                                     "found {}",
                                     describe(text))};
    });
    table.read("tap", network.tap);
    table.read("mac", network.mac);
    for (char& c : network.mac)
      if (c >= 'A' && c <= 'F') c = static_cast<char>(c - 'A' + 'a');
    if (!none) {
      machine_.networks.push_back(std::move(network));
    } else if (value.size() > 1) {
      table.refuse("mode", "mode \"none\" goes with no other key");
    }
    return none;
  }

  void read_cloud_init(const Json& value) {
    TableReader table(value, "/cloud_init", cloud_init_keys, misfit_);
    CloudInitSpecification& cloud_init = machine_.cloud_init.emplace();
    table.read("user_data", cloud_init.user_data);
    table.read("meta_data", cloud_init.meta_data);
    table.read("network_config", cloud_init.network_config);
  }

  std::string_view directory_;
  MachineSpecification machine_;
  std::optional<Misfit> misfit_;
};

Json encode(const DiskSpecification& disk) {
  return {{"name", disk.name},          {"volume", disk.volume},
          {"size", disk.size},          {"block_size", disk.block_size},
          {"image", disk.image},        {"over_image", disk.over_image},
          {"read_only", disk.read_only}};
}

Json encode(const NetworkSpecification& network) {
  Json forwards = Json::array();
  for (const PortForward& forward : network.forwards) forwards.push_back(format_forward(forward));
  return {{"mode", network.mode == NetworkSpecification::Mode::user ? "user" : "tap"},
          {"forward", std::move(forwards)},
          {"tap", network.tap},
          {"mac", network.mac}};
}

}  // namespace

std::span<const TableKeys> machine_tables() {
  static constexpr std::array<TableKeys, 7> tables = {{{"", machine_keys},
                                                       {"kernel", kernel_keys},
                                                       {"disk", disk_keys},
                                                       {"cdrom", cdrom_keys},
                                                       {"network", network_keys},
                                                       {"cloud_init", cloud_init_keys},
                                                       {"limits", limit_keys}}};
  return tables;
}

Decoded decode_specification(const Json& json, std::string_view directory) {
  return Decoder(directory).run(json);
}

Result<MachineSpecification> decode_machine(const Json& json) {
  Decoded decoded = decode_specification(json, "");
  if (!decoded.misfit) return std::move(decoded.specification);
  return failure(
      ErrorKind::invalid_argument,
      fmt::format("{}: {}", describe_place(decoded.misfit->place), decoded.misfit->message));
}

Json encode(const MachineSpecification& specification) {
  Json disks = Json::array();
  for (const DiskSpecification& disk : specification.disks) disks.push_back(encode(disk));
  Json cdroms = Json::array();
  for (const CdromSpecification& cdrom : specification.cdroms)
    cdroms.push_back({{"image", cdrom.image}});
  Json networks = Json::array();
  for (const NetworkSpecification& network : specification.networks)
    networks.push_back(encode(network));
  Json kernel;
  if (!specification.kernel.image.empty()) {
    kernel = {{"image", specification.kernel.image},
              {"initrd", specification.kernel.initrd},
              {"command_line", specification.kernel.command_line}};
  }
  Json cloud_init;
  if (specification.cloud_init) {
    cloud_init = {{"user_data", specification.cloud_init->user_data},
                  {"meta_data", specification.cloud_init->meta_data},
                  {"network_config", specification.cloud_init->network_config}};
  }
  const bool restarts = specification.on_crash == MachineSpecification::OnCrash::restart;
  return {
      {"name", specification.name},
      {"cpus", specification.cpus},
      {"memory", specification.memory},
      {"machine", specification.machine_type},
      {"cpu", specification.cpu_model},
      {"autostart", specification.autostart},
      {"on_crash", restarts ? "restart" : "preserve"},
      {"stop_timeout", specification.stop_timeout_s},
      {"vnc", specification.vnc},
      {"agent", specification.agent},
      {"kernel", std::move(kernel)},
      {"disk", std::move(disks)},
      {"cdrom", std::move(cdroms)},
      {"network", std::move(networks)},
      {"cloud_init", std::move(cloud_init)},
      {"limits", {{"cpus", specification.limits.cpus}, {"memory", specification.limits.memory}}}};
}

std::string describe(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null: return "nothing";
    case Json::value_t::object: return "a table";
    case Json::value_t::array: return "an array";
    case Json::value_t::string: return describe_text(value.get_ref<const std::string&>());
    case Json::value_t::boolean: return value.get<bool>() ? "true" : "false";
    case Json::value_t::number_integer: return fmt::format("{}", value.get<std::int64_t>());
    case Json::value_t::number_unsigned: return fmt::format("{}", value.get<std::uint64_t>());
    case Json::value_t::number_float:
      // dump() shows that 1.0 is no whole number, but knows no infinity.
      return std::isfinite(value.get<double>()) ? value.dump()
                                                : fmt::format("{}", value.get<double>());
    case Json::value_t::binary:
    case Json::value_t::discarded: return "a date or a time";  // what JSON cannot hold
  }
  return "something else";
}

std::string describe_text(std::string_view text) {
  const std::string quoted =
      Json(text.substr(0, shown_bytes_max)).dump(-1, ' ', false, Json::error_handler_t::replace);
  // What JSON leaves as it is and a terminal may obey: DEL, and the controls from U+0080 on.
  std::string shown;
  for (std::size_t i = 0; i < quoted.size(); ++i) {
    const auto byte = static_cast<unsigned char>(quoted[i]);
    const auto next = static_cast<unsigned char>(i + 1 < quoted.size() ? quoted[i + 1] : 0);
    if (byte == 0x7f)
      shown += "\\u007f";
    else if (byte == 0xc2 && next < 0xa0)
      shown += fmt::format("\\u{:04x}", quoted[++i] & 0xff);
    else
      shown += quoted[i];
  }
  if (text.size() > shown_bytes_max) shown += fmt::format("... ({} bytes)", text.size());
  return shown;
}

std::string describe_place(std::string_view place) {
  if (place.empty()) return "machine";
  std::string shown;
  while (!place.empty()) {
    place.remove_prefix(1);
    const std::string_view part = place.substr(0, place.find('/'));
    place.remove_prefix(part.size());
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    const auto is_plain = [&](char c) { return (c >= 'a' && c <= 'z') || c == '_' || is_digit(c); };
    // No key of ours: the message shows it, in quotes.
    if (part.empty() || part.size() > shown_bytes_max || !std::ranges::all_of(part, is_plain))
      break;
    if (!shown.empty() && std::ranges::all_of(part, is_digit))
      shown += fmt::format("[{}]", part);
    else
      shown += fmt::format("{}{}", shown.empty() ? "" : ".", part);
  }
  return shown.empty() ? "machine" : shown;
}

}  // namespace berth::machine
