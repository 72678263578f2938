#include "agent/fields.h"

#include <algorithm>
#include <array>

namespace berth::agent {
namespace {

constexpr std::size_t field_header_size = 6;
constexpr std::size_t fields_max = 16384;        // in one payload
constexpr std::size_t error_message_max = 2048;  // bytes
constexpr auto tag_max = static_cast<std::uint16_t>(last_tag);

std::string name_of(Tag tag) { return "field " + std::to_string(static_cast<unsigned>(tag)); }

Result<std::string> text_of(const Field& field) {
  const std::string_view text = as_text(field.value);
  if (text.contains('\0')) {
    return failure(ErrorKind::invalid_argument, name_of(field.tag) + " has a zero byte");
  }
  return std::string(text);
}

}  // namespace

FieldWriter::FieldWriter(std::uint16_t head) : bytes_(2) { store_le(bytes_.data(), head); }

FieldWriter& FieldWriter::number(Tag tag, std::uint64_t value) {
  std::array<std::byte, 8> bytes{};
  store_le(bytes.data(), value);
  return raw(tag, bytes);
}

FieldWriter& FieldWriter::raw(Tag tag, Bytes value) {
  std::array<std::byte, field_header_size> header{};
  Writer writer(header);
  writer.le(static_cast<std::uint16_t>(tag));
  writer.le(static_cast<std::uint32_t>(value.size()));
  bytes_.insert(bytes_.end(), header.begin(), header.end());
  bytes_.insert(bytes_.end(), value.begin(), value.end());
  return *this;
}

Result<Fields> Fields::decode(Bytes payload) {
  Fields fields;
  Reader reader(payload);
  while (reader.remaining() > 0) {
    const auto tag = reader.le<std::uint16_t>();
    const auto length = reader.le<std::uint32_t>();
    const Bytes value = reader.raw(length);
    if (!reader.ok()) return failure(ErrorKind::protocol, "a field is cut short");
    if (fields.fields_.size() == fields_max) {
      return failure(ErrorKind::limit, "more than " + std::to_string(fields_max) + " fields");
    }
    fields.fields_.push_back({static_cast<Tag>(tag), value});
  }
  return fields;
}

const Field* Fields::find(Tag tag) const {
  const auto found = std::ranges::find(fields_, tag, &Field::tag);
  return found == fields_.end() ? nullptr : &*found;
}

Result<std::uint64_t> Fields::number(Tag tag) const {
  const Field* field = find(tag);
  if (field == nullptr) {
    return failure(ErrorKind::invalid_argument, name_of(tag) + " is missing");
  }
  const auto number = number_of(*field);
  if (!number) return failure(ErrorKind::invalid_argument, name_of(tag) + " is no number");
  return *number;
}

Result<std::uint64_t> Fields::number_or(Tag tag, std::uint64_t missing) const {
  return has(tag) ? number(tag) : Result<std::uint64_t>(missing);
}

Result<std::string> Fields::text(Tag tag) const {
  const Field* field = find(tag);
  if (field == nullptr) {
    return failure(ErrorKind::invalid_argument, name_of(tag) + " is missing");
  }
  return text_of(*field);
}

Result<std::string> Fields::text_or(Tag tag, std::string_view missing) const {
  return has(tag) ? text(tag) : Result<std::string>(std::string(missing));
}

Result<std::vector<std::string>> Fields::texts(Tag tag) const {
  std::vector<std::string> found;
  for (const Field& field : fields_) {
    if (field.tag == tag) found.push_back(TRY(text_of(field)));
  }
  return found;
}

Bytes Fields::raw(Tag tag) const {
  const Field* field = find(tag);
  return field == nullptr ? Bytes{} : field->value;
}

Result<void> Fields::check_tags() const {
  for (const Field& field : fields_) {
    const auto tag = static_cast<std::uint16_t>(field.tag);
    if ((tag & optional_tag) == 0 && (tag == 0 || tag > tag_max)) {
      return failure(ErrorKind::unsupported, "this agent does not know " + name_of(field.tag));
    }
  }
  return {};
}

std::optional<std::uint64_t> number_of(const Field& field) {
  if (field.value.size() != 8) return std::nullopt;
  return load_le<std::uint64_t>(field.value.data());
}

void write_error(FieldWriter& writer, const Error& error) {
  writer.text(Tag::error_kind, to_string(error.kind()));
  writer.text(Tag::error_message, error.message().substr(0, error_message_max));
}

std::optional<Error> read_error(const Fields& fields) {
  if (!fields.has(Tag::error_kind)) return std::nullopt;
  return Error(error_kind_from_string(as_text(fields.raw(Tag::error_kind))),
               std::string(as_text(fields.raw(Tag::error_message))));
}

}  // namespace berth::agent
