// The objects that the API answers with: each named once, with its fields. docs/openapi.yaml and
// the tests that hold answers against it derive from this list.
//
// Plain data, made once, never changed.
#pragma once

#include <string_view>
#include <vector>

namespace berth::control {

/// A type is written as text: "string", "integer" (a whole number), "number", "boolean", "time"
/// (RFC 3339, UTC), "id" (36 characters), or the name of a schema; "T[]" is a list of T, "T?" is T
/// or null.
struct Field {
  std::string_view name;
  std::string_view type;
  std::string_view description;
  bool optional = false;  // may be left out
};

struct Schema {
  std::string_view name;
  std::string_view description;
  std::vector<Field> fields;
};

const std::vector<Schema>& schemas();
/// Null if there is none of that name.
const Schema* find_schema(std::string_view name);

/// A type's text, taken apart: what remains without "?" and "[]", and how many of each there were.
struct TypeParts {
  std::string_view base;
  int list_depth = 0;
  bool nullable = false;
};
TypeParts parse_type(std::string_view type);

}  // namespace berth::control
