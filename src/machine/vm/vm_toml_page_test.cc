// docs/vm-toml.md is about the keys that there are, and its examples work.

#include <string>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "machine/temporary_directory.h"
#include "machine/vm/qemu_command.h"
#include "machine/vm/specification_rules.h"

namespace berth::machine {
namespace {

std::string page() {
  return read_text(std::filesystem::path(BERTH_TEST_DATA_DIR).parent_path().parent_path() /
                   "docs/vm-toml.md");
}

/// What stands between each pair of `begin` and `end`.
std::vector<std::string> pieces(const std::string& text, std::string_view begin,
                                std::string_view end) {
  std::vector<std::string> found;
  for (std::size_t at = text.find(begin); at != std::string::npos; at = text.find(begin, at)) {
    at += begin.size();
    const std::size_t stop = text.find(end, at);
    found.push_back(text.substr(at, stop - at));
  }
  return found;
}

/// From the heading to the next one.
std::string section(std::string_view table) {
  const bool is_array = table == "disk" || table == "cdrom" || table == "network";
  const std::string name = is_array ? fmt::format("[[{}]]", table) : fmt::format("[{}]", table);
  const std::string heading =
      table.empty() ? "\n## The machine\n" : fmt::format("\n## `{}`\n", name);
  const auto found = pieces(page(), heading, "\n## ");
  return found.size() == 1 ? found[0] : "";
}

TEST(VmTomlPage, EveryExampleIsTaken) {
  const auto examples = pieces(page(), "```toml\n", "```");
  EXPECT_GE(examples.size(), 8U);
  for (const std::string& example : examples) {
    // Those of one table are parts of a file.
    const bool is_part = example.starts_with('[');
    const auto parsed = parse_machine_toml(
        (is_part ? "name = 'part'\nmemory = '1G'\n" : "") + example, "vm-toml.md", "/srv");
    EXPECT_TRUE(parsed) << parsed.error().message() << "\n" << example;
  }
}

TEST(VmTomlPage, HasEveryKeyInTheSectionOfItsTableAndNoOther) {
  for (const TableKeys& table : machine_tables()) {
    const std::string text = section(table.name);
    ASSERT_FALSE(text.empty()) << table.name;
    for (const std::string_view key : table.keys)
      EXPECT_THAT(text, testing::HasSubstr(fmt::format("\n| `{}` | ", key))) << table.name;
    EXPECT_EQ(pieces(text, "\n| `", "`").size(), table.keys.size()) << table.name;
  }
}

TEST(VmTomlPage, HasTheDefaultsThatThereAre) {
  const MachineSpecification machine;
  const std::string text = section("");
  const auto has_default = [&](std::string_view key, const std::string& value) {
    const auto rows = pieces(text, fmt::format("\n| `{}` | ", key), "\n");
    ASSERT_EQ(rows.size(), 1U) << key;
    EXPECT_THAT(rows[0], testing::HasSubstr(fmt::format(" | {} | ", value))) << key;
  };
  has_default("cpus", fmt::format("{}", machine.cpus));
  has_default("machine", fmt::format("`\"{}\"`", machine_type_default));
  has_default("cpu", fmt::format("`\"{}\"`", cpu_model_default));
  has_default("autostart", machine.autostart ? "true" : "false");
  has_default("vnc", machine.vnc ? "true" : "false");
  has_default("agent", machine.agent ? "true" : "false");
  has_default("stop_timeout", fmt::format("{}", machine.stop_timeout_s));
}

}  // namespace
}  // namespace berth::machine
