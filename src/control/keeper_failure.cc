#include "control/keeper_failure.h"

#include <fstream>
#include <iterator>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "machine/control_protocol.h"
#include "machine/layout.h"

namespace berth::control {

Error keeper_failure(std::string_view log) {
  // The last line of this form: "TIME error keeper ID: KIND: MESSAGE"
  constexpr std::string_view mark = " error keeper ";
  const std::size_t found = log.rfind(mark);
  if (found == std::string_view::npos) {
    while (log.ends_with('\n')) log.remove_suffix(1);
    const std::string_view line = log.substr(log.find_last_of('\n') + 1);
    return {ErrorKind::internal, line.empty() ? "its keeper ended at once, without a word"
                                              : fmt::format("its keeper ended at once: {}", line)};
  }
  std::string_view rest = log.substr(found + mark.size());
  rest = rest.substr(0, rest.find('\n'));
  const std::size_t after_id = rest.find(": ");
  const std::size_t after_kind =
      after_id == std::string_view::npos ? after_id : rest.find(": ", after_id + 2);
  if (after_kind == std::string_view::npos) return {ErrorKind::internal, std::string(rest)};
  const std::string_view kind_name = rest.substr(after_id + 2, after_kind - after_id - 2);
  const ErrorKind kind = error_kind_from_string(kind_name);
  if (to_string(kind) != kind_name) return {ErrorKind::internal, std::string(rest)};
  return {kind, std::string(rest.substr(after_kind + 2))};
}

bool was_serving(const std::string& run_dir, const std::string& volume) {
  std::ifstream file(machine::RunLayout{run_dir}.serve_file(volume));
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const auto parsed = machine::parse_json(text);
  if (!parsed || !parsed->is_object()) return false;
  const auto listeners = parsed->find("listeners");
  return listeners != parsed->end() && listeners->is_array() && !listeners->empty();
}

}  // namespace berth::control
