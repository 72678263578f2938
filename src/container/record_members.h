// The records of containers and templates, read member by member. Pure; internal to
// container_record.cc and template_record.cc.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/ids.h"
#include "base/result.h"
#include "machine/control_protocol.h"

namespace berth::container {

using machine::Json;

constexpr std::size_t text_max = 4096;  // bytes, of what is no word of a command
constexpr std::size_t word_max = std::size_t{96} << 10;
constexpr std::size_t labels_max = 256;

inline std::unexpected<Error> wrong(std::string_view member, std::string_view expected) {
  return failure(ErrorKind::invalid_argument, fmt::format("{}: expected {}", member, expected));
}

/// The members of one JSON object, each taken once; what is left at the end is a mistake.
class Members {
 public:
  Members(const Json& json, std::string_view where) : json_(json), where_(where) {}

  Result<void> check_object() const {
    if (json_.is_object()) return {};
    return wrong(where_, "an object");
  }
  Result<void> check_all_known() const {
    for (const auto& [name, value] : json_.items()) {
      if (!known_.contains(name))
        return failure(ErrorKind::invalid_argument, fmt::format("{}: not known", at(name)));
    }
    return {};
  }

  Result<void> take(const char* name, std::string& into, std::size_t most = text_max) {
    const Json* value = find(name);
    if (value == nullptr) return {};
    into = TRY(text_of(*value, at(name), most));
    return {};
  }
  /// One that has to be there.
  Result<void> take(const char* name, Id128& into) {
    std::string text;
    TRY(take(name, text));
    into = TRY(Id128::parse(text));
    return {};
  }
  Result<void> take(const char* name, bool& into) {
    const Json* value = find(name);
    if (value == nullptr) return {};
    if (!value->is_boolean()) return wrong(at(name), "true or false");
    into = value->get<bool>();
    return {};
  }
  Result<void> take(const char* name, double& into) {
    const Json* value = find(name);
    if (value == nullptr) return {};
    if (!value->is_number()) return wrong(at(name), "a number");
    into = value->get<double>();
    return {};
  }
  template <typename Number>
    requires std::is_unsigned_v<Number>
  Result<void> take(const char* name, Number& into) {
    const Json* value = find(name);
    if (value == nullptr) return {};
    if (!value->is_number_unsigned() || !std::in_range<Number>(value->get<std::uint64_t>()))
      return wrong(at(name), fmt::format("a number up to {}", std::numeric_limits<Number>::max()));
    into = value->get<Number>();
    return {};
  }
  Result<void> take(const char* name, std::vector<std::string>& into, std::size_t most) {
    const Json* value = find(name);
    if (value == nullptr) return {};
    if (!value->is_array() || value->size() > most)
      return wrong(at(name), fmt::format("a list of up to {} texts", most));
    into.clear();
    for (const Json& entry : *value) into.push_back(TRY(text_of(entry, at(name), word_max)));
    return {};
  }
  Result<void> take(const char* name, std::map<std::string, std::string>& into) {
    const Json* value = find(name);
    if (value == nullptr) return {};
    if (!value->is_object() || value->size() > labels_max)
      return wrong(at(name), fmt::format("an object with up to {} texts", labels_max));
    into.clear();
    for (const auto& [key, entry] : value->items())
      into.emplace(key, TRY(text_of(entry, at(name), text_max)));
    return {};
  }
  /// `decode` makes one of the list's entries out of its Members.
  template <typename Entry, typename Decode>
  Result<void> take(const char* name, std::vector<Entry>& into, std::size_t most, Decode decode) {
    const Json* value = find(name);
    if (value == nullptr) return {};
    if (!value->is_array() || value->size() > most)
      return wrong(at(name), fmt::format("a list of up to {}", most));
    into.clear();
    for (std::size_t i = 0; i < value->size(); ++i) {
      const std::string where = fmt::format("{}[{}]", at(name), i);
      Members members((*value)[i], where);
      TRY(members.check_object());
      into.push_back(TRY(decode(members)));
      TRY(members.check_all_known());
    }
    return {};
  }

  std::string at(std::string_view name) const {
    return where_.empty() ? std::string(name) : fmt::format("{}.{}", where_, name);
  }

 private:
  const Json* find(const char* name) {
    known_.insert(name);
    const auto found = json_.find(name);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }
  static Result<std::string> text_of(const Json& value, const std::string& where,
                                     std::size_t most) {
    if (!value.is_string()) return wrong(where, "a text");
    auto text = value.get<std::string>();
    if (text.size() > most || text.contains('\0'))
      return wrong(where, fmt::format("a text of up to {} bytes without a zero", most));
    return text;
  }

  const Json& json_;
  std::string where_;
  std::set<std::string> known_;
};

/// What a record begins with: `unsupported` for another kind, or another version.
inline Result<void> check_format(Members& members, std::string_view expected, unsigned version) {
  std::string format;
  unsigned found = 0;
  TRY(members.take("format", format));
  TRY(members.take("version", found));
  if (format == expected && found == version) return {};
  return failure(ErrorKind::unsupported, fmt::format("it is '{}' of version {}", format, found));
}

inline Result<Json> parse_document(std::string_view text) {
  auto json = machine::parse_json(text);
  if (!json) return failure(ErrorKind::corrupt, json.error().message());
  return json;
}

/// What is wrong with a document of ours is no mistake of whoever reads it.
template <typename T>
Result<T> as_document(Result<T> decoded) {
  if (!decoded && decoded.error().kind() == ErrorKind::invalid_argument)
    return failure(ErrorKind::corrupt, decoded.error().message());
  return decoded;
}

}  // namespace berth::container
