// Who a process runs as: "name|uid[:group|gid]", looked up in the image's own /etc/passwd and
// /etc/group, as images mean it (image-spec, config.md: User).
//
// Pure: the texts of the files come from the image and may hold anything; lines that are no entries
// are passed over.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace berth::agent {

constexpr std::size_t supplementary_groups_max = 64;

struct User {
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::vector<std::uint32_t> groups;  // besides gid; none where the group was named
  std::string home = "/";
  friend bool operator==(const User&, const User&) = default;
};

/// A name is looked for first, also one of digits; a number that no entry has is taken as it is,
/// with group 0. "" is root. `not_found` for a name that the image does not know.
Result<User> resolve_user(std::string_view who, std::string_view passwd, std::string_view group);

}  // namespace berth::agent
