#include "agent/users.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

namespace berth::agent {
namespace {

std::optional<std::uint32_t> parse_id(std::string_view text) {
  std::uint32_t id = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  // The highest means "unchanged" to chown and setresuid.
  if (error != std::errc{} || end != text.data() + text.size() || id == UINT32_MAX) {
    return std::nullopt;
  }
  return id;
}

/// What is before the next separator; takes both away.
std::string_view take_until(std::string_view& text, char separator) {
  const std::size_t end = std::min(text.find(separator), text.size());
  const std::string_view found = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  return found;
}

struct Entry {
  std::string_view name;
  std::uint32_t id = 0;
  std::string_view
      rest;  // after the id: of a user "gid:comment:home:shell", of a group its members
};

/// Calls `visit` with each entry of a passwd or group file, until it says false.
template <typename Visit>
void visit_entries(std::string_view text, Visit visit) {
  while (!text.empty()) {
    std::string_view line = take_until(text, '\n');
    const std::string_view name = take_until(line, ':');
    take_until(line, ':');  // the password
    const auto id = parse_id(take_until(line, ':'));
    if (!name.empty() && id && !visit(Entry{name, *id, line})) return;
  }
}

/// The entry with this name or, if there is none, this number.
std::optional<Entry> find_entry(std::string_view text, std::string_view name) {
  std::optional<Entry> by_name;
  std::optional<Entry> by_number;
  const auto number = parse_id(name);
  visit_entries(text, [&](const Entry& entry) {
    if (entry.name == name) by_name = entry;
    if (number && entry.id == *number && !by_number) by_number = entry;
    return !by_name;
  });
  return by_name ? by_name : by_number;
}

std::vector<std::uint32_t> groups_of(std::string_view user, std::string_view group) {
  std::vector<std::uint32_t> found;
  visit_entries(group, [&](const Entry& entry) {
    std::string_view members = entry.rest;
    while (!members.empty()) {
      if (take_until(members, ',') == user) {
        found.push_back(entry.id);
        break;
      }
    }
    return found.size() < supplementary_groups_max;
  });
  return found;
}

std::unexpected<Error> unknown(std::string_view what, std::string_view name,
                               std::string_view file) {
  return failure(ErrorKind::not_found, "the image has no " + std::string(what) + " '" +
                                           std::string(name) + "' in " + std::string(file));
}

}  // namespace

Result<User> resolve_user(std::string_view who, std::string_view passwd, std::string_view group) {
  const bool has_group = who.contains(':');
  std::string_view group_name = who;
  std::string_view name = take_until(group_name, ':');
  if (name.empty()) name = "0";
  User user;
  if (const auto entry = find_entry(passwd, name)) {
    std::string_view rest = entry->rest;
    user.uid = entry->id;
    user.gid = parse_id(take_until(rest, ':')).value_or(0);
    take_until(rest, ':');  // the comment
    const std::string_view home = take_until(rest, ':');
    if (home.starts_with('/')) user.home = home;
    if (!has_group) user.groups = groups_of(entry->name, group);
  } else if (const auto uid = parse_id(name)) {
    user.uid = *uid;
    if (*uid == 0) user.home = "/root";
  } else {
    return unknown("user", name, "/etc/passwd");
  }
  if (has_group) {
    if (const auto entry = find_entry(group, group_name)) {
      user.gid = entry->id;
    } else if (const auto gid = parse_id(group_name)) {
      user.gid = *gid;
    } else {
      return unknown("group", group_name, "/etc/group");
    }
  }
  return user;
}

}  // namespace berth::agent
