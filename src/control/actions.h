// Every operation that the daemon offers, listed once: its name, its place in HTTP, what must hold
// before it, what it takes and what it answers. HTTP routing, the command line, the man page and
// docs/openapi.yaml derive from this list; it knows nothing of them.
//
// Plain data, made once, never changed.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace berth::control {

enum class Method : std::uint8_t { get, post, remove };
std::string_view to_string(Method method);  // "GET", "POST", "DELETE"

struct Parameter {
  /// Where it travels in HTTP. Those of a path are always required.
  enum class Place : std::uint8_t { path, query, body };
  enum class Type : std::uint8_t {
    volume_name,   // as machine::check_name
    machine_name,  // as machine::check_name
    point_name,    // of a checkpoint or a reference point, as machine::check_point_name
    volume_names,  // a list, at least one, none twice
    texts,         // a list, may be empty
    text,
    path,     // an absolute path on the daemon's host
    address,  // host:port
    size,     // bytes, a whole number
    count,    // a whole number
    flag,     // true or false; false when left out
    choice,   // one of `choices`; the first when left out
    object,   // a JSON object, of the schema that `choices` names
    id,       // 32 hexadecimal digits, as in RFC 4122
  };

  std::string_view name;
  Place place = Place::body;
  Type type = Type::text;
  bool required = false;
  std::string_view description;
  std::vector<std::string_view> choices;
};

enum class Answer : std::uint8_t {
  result,   // 200 and the result, when it is done
  created,  // 201 and the result, when it is done
  job,      // 202 and a Job at once; the job's result is what `result` names
  stream,   // 200 and a line of JSON each time there is something to say
  upgrade   // 101, and from then on the connection is the container's (attach_protocol)
};

struct Action {
  std::string_view name;  // noun and verb: "checkpoint.create"
  Method method = Method::get;
  std::string_view path;  // "/v1/volumes/{volume}"
  std::string_view summary;
  std::string_view
      precondition;  // what must hold, and what is answered where it does not; may be empty
  Answer answer = Answer::result;
  std::string_view result;  // name of a schema
  std::vector<Parameter> parameters;
  /// What it may answer beside what every action may (see common_errors).
  std::vector<ErrorKind> errors;
};

const std::vector<Action>& actions();
/// Null if there is none of that name.
const Action* find_action(std::string_view name);

/// All kinds of error that the action may answer: its own, those of asking for it wrongly, and
/// ours.
std::vector<ErrorKind> errors_of(const Action& action);

/// The status of an action's success.
unsigned success_status(const Action& action);
/// The HTTP status that stands for a kind of error.
unsigned http_status(ErrorKind kind);

}  // namespace berth::control
