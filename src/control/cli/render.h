// What people see of an answer: tables, "name: value" lists, sentences. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "base/error.h"

namespace berth::control::cli {

/// Columns as wide as they need to be; `>` in front of a heading aligns its column to the right.
std::string table(const std::vector<std::string>& headings,
                  const std::vector<std::vector<std::string>>& rows);

/// The answer of an action (or of its job), by the schema that it has; ends with a newline, or is
/// empty.
std::string render(std::string_view schema, const nlohmann::json& answer);

/// A job on one line, as a progress bar of about `width` columns: "export disk1@a [####    ]
/// 52%  1.2 GiB of 2.3 GiB  …".
std::string progress_line(const nlohmann::json& job, std::size_t width);

/// An error on one line, without what would move a terminal's cursor; with what its kind asks for.
std::string render_error(const Error& error);

/// The lines of a list of changes, without its heading; and what is said after the last page.
std::string render_extents(const nlohmann::json& extents);
std::string changes_heading();
std::string changes_summary(std::uint64_t extents, std::uint64_t bytes, bool exact);

/// A machine's checkpoints, each below the one that its life went on from.
std::string render_checkpoint_tree(const nlohmann::json& checkpoints);

}  // namespace berth::control::cli
