#include "control/cli/render_doctor.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace berth::control::cli {
namespace {

using Json = nlohmann::json;

// In the order in which the last line counts them, with their SGR colors (ECMA-48).
constexpr std::array<std::pair<std::string_view, std::string_view>, 4> states = {{
    {"found", "32"},     // green
    {"degraded", "33"},  // yellow
    {"missing", "31"},   // red
    {"unknown", "36"},   // cyan
}};
constexpr std::size_t state_width = 8;

std::string text_of(const Json& check, const char* field) {
  // What the host says may hold anything; a terminal gets none of its control characters.
  auto text = check.at(field).get<std::string>();
  std::ranges::replace_if(
      text, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; }, ' ');
  return text;
}

std::string state_cell(const std::string& state, std::size_t width, Coloring coloring) {
  std::string cell = fmt::format("{:<{}}", state, width);
  const auto known =
      std::ranges::find(states, state, &std::pair<std::string_view, std::string_view>::first);
  if (coloring == Coloring::plain || known == states.end()) return cell;
  return fmt::format("\033[{}m{}\033[0m", known->second, cell);
}

std::string render_table(const Json& checks, Coloring coloring) {
  std::size_t width = 0;
  for (const Json& check : checks) width = std::max(width, text_of(check, "name").size());
  std::string out;
  std::string group;
  for (const Json& check : checks) {
    if (text_of(check, "group") != group) {
      group = text_of(check, "group");
      out += group + '\n';
    }
    out += fmt::format("  {:<{}}  {}  {}\n", text_of(check, "name"), width,
                       state_cell(text_of(check, "state"), state_width, coloring),
                       text_of(check, "detail"));
  }
  return out;
}

std::string render_remedies(const Json& checks, Coloring coloring) {
  std::string out;
  for (const Json& check : checks) {
    const std::string state = text_of(check, "state");
    if (state == "found") continue;
    out += fmt::format("\n{} is {} ({})\n  costs:  {}\n  remedy: {}\n", text_of(check, "name"),
                       state_cell(state, 0, coloring), text_of(check, "need"),
                       text_of(check, "cost"), text_of(check, "remedy"));
  }
  return out;
}

std::string render_verdict(const Json& report) {
  std::vector<std::string> counts;
  for (const auto& [state, color] : states) {
    const auto count = std::ranges::count_if(
        report.at("checks"), [&](const Json& check) { return check.at("state") == state; });
    if (count != 0) counts.push_back(fmt::format("{} {}", count, state));
  }
  const std::string missing = missing_essentials_of(report);
  return fmt::format(
      "\n{}; {}\n", fmt::join(counts, ", "),
      missing.empty() ? "Berth can work here" : "Berth cannot work here without: " + missing);
}

}  // namespace

std::string render_doctor(const Json& report, Coloring coloring) {
  const Json& checks = report.at("checks");
  return render_table(checks, coloring) + render_remedies(checks, coloring) +
         render_verdict(report);
}

std::string missing_essentials_of(const Json& report) {
  std::vector<std::string> names;
  for (const Json& check : report.at("checks")) {
    if (check.at("need") == "essential" && check.at("state") == "missing")
      names.push_back(text_of(check, "name"));
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace berth::control::cli
