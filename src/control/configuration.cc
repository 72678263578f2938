#include "control/configuration.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "machine/small_file.h"
#include "machine/vm/toml_document.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;
using machine::PauseLevel;

/// One table of the file, each of whose keys is taken once.
class Table {
 public:
  Table(const machine::TomlDocument& document, std::string_view file, std::string place,
        const Json& value)
      : document_(document), file_(file), place_(std::move(place)), value_(value) {}

  std::unexpected<Error> wrong(std::string_view key, std::string_view message) const {
    const std::string where = key.empty() ? place_ : fmt::format("{}/{}", place_, key);
    std::string shown = where.substr(where.empty() ? 0 : 1);
    std::ranges::replace(shown, '/', '.');
    return failure(ErrorKind::invalid_argument,
                   fmt::format("{}:{}: {}{}{}", file_, machine::line_of(document_, where), shown,
                               shown.empty() ? "" : ": ", message));
  }
  const Json* find(const std::string& key) const {
    const auto found = value_.find(key);
    return found == value_.end() ? nullptr : &*found;
  }
  Result<void> check_keys(const std::vector<std::string_view>& known) const {
    if (!value_.is_object()) return wrong("", "expected a table");
    for (const auto& [key, value] : value_.items()) {
      if (std::ranges::find(known, key) == known.end())
        return wrong(key, fmt::format("not known here; there are {}", fmt::join(known, ", ")));
    }
    return {};
  }
  Result<std::chrono::milliseconds> duration(const std::string& key) const {
    const Json& value = value_[key];
    const auto parsed = value.is_string() ? parse_duration(value.get<std::string>())
                                          : failure(ErrorKind::invalid_argument, "");
    if (!parsed || parsed->count() == 0)
      return wrong(key, "expected a duration above zero, such as \"90s\" or \"5m\"");
    return *parsed;
  }
  Table table(const std::string& key) const {
    return {document_, file_, fmt::format("{}/{}", place_, key), value_[key]};
  }

 private:
  const machine::TomlDocument& document_;
  std::string_view file_;
  std::string place_;  // a JSON pointer
  const Json& value_;
};

/// A duration, or one for each level.
Result<std::vector<ParkingStep>> decode_steps(const Table& parking) {
  if (!parking.find("after_idle")->is_object()) {
    return std::vector<ParkingStep>{
        {.level = PauseLevel::parked, .after = TRY(parking.duration("after_idle"))}};
  }
  const Table levels = parking.table("after_idle");
  std::vector<std::string_view> names;
  for (const PauseLevel level : parking_levels) names.push_back(to_string(level));
  TRY(levels.check_keys(names));
  std::vector<ParkingStep> steps;
  for (const PauseLevel level : parking_levels) {
    const std::string key(to_string(level));
    if (levels.find(key) == nullptr) continue;
    const ParkingStep step{.level = level, .after = TRY(levels.duration(key))};
    if (!steps.empty() && step.after <= steps.back().after) {
      return levels.wrong(key, fmt::format("expected a longer time than that of {}, which is a "
                                           "lighter level",
                                           to_string(steps.back().level)));
    }
    steps.push_back(step);
  }
  return steps;
}

Result<ParkingConfiguration> decode_parking(const Table& table) {
  ParkingConfiguration parking;
  TRY(table.check_keys({"after_idle", "pressure", "pressure_interval", "pressure_file"}));
  if (table.find("after_idle") != nullptr) parking.steps = TRY(decode_steps(table));
  if (const Json* value = table.find("pressure")) {
    const double percent = value->is_number() ? value->get<double>() : -1;
    if (!(percent > 0 && percent <= 100))
      return table.wrong("pressure", "expected a number of percent above 0, up to 100");
    parking.pressure = percent;
  }
  if (table.find("pressure_interval") != nullptr)
    parking.pressure_interval = TRY(table.duration("pressure_interval"));
  if (const Json* value = table.find("pressure_file")) {
    if (!value->is_string() || !value->get<std::string>().starts_with('/'))
      return table.wrong("pressure_file", "expected an absolute path");
    parking.pressure_file = value->get<std::string>();
  }
  return parking;
}

}  // namespace

Result<Configuration> parse_configuration(std::string_view text, std::string_view file) {
  const machine::TomlDocument document = TRY(machine::parse_toml(text, file));
  const Table root(document, file, "", document.value);
  TRY(root.check_keys({"parking"}));
  Configuration configuration;
  if (root.find("parking") != nullptr)
    configuration.parking = TRY(decode_parking(root.table("parking")));
  return configuration;
}

Result<Configuration> load_configuration(const std::string& path) {
  const std::string file = path.empty() ? default_configuration_file : path;
  const auto text = machine::read_small_file(file);
  if (!text && path.empty() && text.error().kind() == ErrorKind::not_found) return Configuration{};
  if (!text) return failure(Error(text.error()).with_context("the configuration"));
  return parse_configuration(*text, file);
}

}  // namespace berth::control
