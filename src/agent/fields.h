// The fields of requests, answers and events: tag (2 bytes), length (4), value; one after the
// other.
//
// Why not JSON: the agent is PID 1 of guests of a few MiB, and both sides read what the other says
// with the same fifty lines. Why not fixed structures: fields are optional, repeated, and there
// will be more of them.
//
// Pure; bytes from the other side may hold anything.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "agent/protocol.h"
#include "base/bytes.h"
#include "base/result.h"

namespace berth::agent {

/// Builds the payload of a request, an answer or an event.
class FieldWriter {
 public:
  /// An answer.
  FieldWriter() = default;
  /// A request or an event begins with what it is.
  explicit FieldWriter(Operation operation) : FieldWriter(static_cast<std::uint16_t>(operation)) {}
  explicit FieldWriter(EventKind kind) : FieldWriter(static_cast<std::uint16_t>(kind)) {}

  FieldWriter& number(Tag tag, std::uint64_t value);
  FieldWriter& text(Tag tag, std::string_view value) { return raw(tag, as_bytes(value)); }
  FieldWriter& raw(Tag tag, Bytes value);

  Bytes bytes() const { return bytes_; }

 private:
  explicit FieldWriter(std::uint16_t head);
  std::vector<std::byte> bytes_;
};

struct Field {
  Tag tag{};
  Bytes value;
};

/// Fields in their order, as views into the payload.
class Fields {
 public:
  /// `protocol`: cut short, or a number that has not 8 bytes is found out only by number().
  static Result<Fields> decode(Bytes payload);

  auto begin() const { return fields_.begin(); }
  auto end() const { return fields_.end(); }
  bool has(Tag tag) const { return find(tag) != nullptr; }
  /// The first of this tag; `invalid_argument` where it is missing or no number.
  Result<std::uint64_t> number(Tag tag) const;
  Result<std::uint64_t> number_or(Tag tag, std::uint64_t missing) const;
  /// Without zero bytes; `invalid_argument` where it is missing or has some.
  Result<std::string> text(Tag tag) const;
  Result<std::string> text_or(Tag tag, std::string_view missing) const;
  Result<std::vector<std::string>> texts(Tag tag) const;
  /// Empty where it is missing.
  Bytes raw(Tag tag) const;
  /// `unsupported` where there is a tag that this side does not know and may not pass over.
  Result<void> check_tags() const;

 private:
  const Field* find(Tag tag) const;
  std::vector<Field> fields_;
};

/// The number of a field; nothing if it is none.
std::optional<std::uint64_t> number_of(const Field& field);

/// The error of an answer as fields, and back. A kind of which this side knows nothing is
/// `internal`.
void write_error(FieldWriter& writer, const Error& error);
std::optional<Error> read_error(const Fields& fields);

}  // namespace berth::agent
