#include "machine/vm/pause_record.h"

#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "base/log.h"
#include "machine/control_messages.h"
#include "machine/small_file.h"

namespace berth::machine {
namespace {

constexpr std::array<std::string_view, 5> names = {"running", "frozen", "trimmed", "parked",
                                                   "hibernated"};

struct Field {
  const char* name;
  std::uint64_t memory::MemoryUse::* value;
};
constexpr std::array fields = {Field{"memory", &memory::MemoryUse::guest},
                               Field{"swapped", &memory::MemoryUse::swapped},
                               Field{"qemu", &memory::MemoryUse::process}};

Json encode(const memory::MemoryUse& use) {
  Json json = Json::object();
  for (const Field& field : fields) json[field.name] = use.*field.value;
  return json;
}

Result<memory::MemoryUse> decode_use(const Json& json, const char* name) {
  const auto found = json.find(name);
  if (found == json.end() || !found->is_object())
    return failure(ErrorKind::invalid_argument, fmt::format("{}: expected an object", name));
  memory::MemoryUse use;
  for (const Field& field : fields)
    use.*field.value = TRY(required_number_param(*found, field.name));
  return use;
}

}  // namespace

std::string_view to_string(PauseLevel level) { return names.at(static_cast<std::size_t>(level)); }

Result<PauseLevel> parse_pause_level(std::string_view word) {
  const auto* const found = std::ranges::find(names, word);
  if (found == names.end() || found == names.begin()) {
    return failure(ErrorKind::invalid_argument,
                   "level: expected frozen, trimmed, parked or hibernated");
  }
  return static_cast<PauseLevel>(found - names.begin());
}

Json encode(const PauseRecord& record) {
  Json json = {{"level", to_string(record.level)},
               {"since", record.since},
               {"took_ms", record.took_ms},
               {"before", nullptr},
               {"after", nullptr},
               {"page_file_bytes", record.page_file_bytes}};
  if (record.memory) {
    json["before"] = encode(record.memory->before);
    json["after"] = encode(record.memory->after);
  }
  return json;
}

Result<PauseRecord> decode_pause_record(const Json& json) {
  PauseRecord record;
  const std::string level = TRY(required_text_param(json, "level"));
  record.level = TRY(parse_pause_level(level));
  record.since = TRY(required_text_param(json, "since"));
  record.took_ms = TRY(required_number_param(json, "took_ms"));
  record.page_file_bytes = TRY(required_number_param(json, "page_file_bytes"));
  if (json.contains("before") && !json["before"].is_null()) {
    record.memory = PageFiles::Report{.before = TRY(decode_use(json, "before")),
                                      .after = TRY(decode_use(json, "after"))};
  }
  return record;
}

Result<PauseRecord> move_memory(const PageFiles& files, const memory::GuestProcess& process,
                                PauseLevel level) {
  PauseRecord record{.level = level, .since = {}, .memory = {}};
  record.memory = TRY(level == PauseLevel::parked ? files.park(process) : files.trim(process));
  record.page_file_bytes = files.disk_bytes();
  return record;
}

void save_pause_record(const std::string& path, const PauseRecord& record) {
  if (const auto saved = write_small_file(path, encode(record).dump(2) + '\n'); !saved)
    log_warning("{}", saved.error().message());
}

PauseRecord load_pause_record(const std::string& path) {
  const auto text = read_small_file(path);
  const auto json = text ? parse_json(*text) : failure(text.error());
  auto record = json ? decode_pause_record(*json) : failure(json.error());
  if (record) return *std::move(record);
  return {.level = PauseLevel::frozen, .since = {}, .memory = {}};
}

}  // namespace berth::machine
