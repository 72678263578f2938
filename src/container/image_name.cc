#include "container/image_name.h"

#include <algorithm>

#include <fmt/format.h>

namespace berth::container {
namespace {

constexpr std::string_view default_registry = "docker.io";
constexpr std::string_view digest_algorithm = "sha256:";
constexpr std::size_t digest_digits_count = 64;
constexpr std::size_t repository_length_max = 255;
constexpr std::size_t tag_length_max = 128;
constexpr std::size_t shown_length_max = 80;

bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return is_lower(c) || (c >= 'A' && c <= 'Z'); }
bool is_hexadecimal(char c) { return is_digit(c) || (c >= 'a' && c <= 'f'); }

/// [A-Za-z0-9]+ with '.' and '-' between, and perhaps a port.
bool is_registry(std::string_view text) {
  const std::size_t colon = text.find(':');
  if (colon != std::string_view::npos) {
    const std::string_view port = text.substr(colon + 1);
    if (port.empty() || port.size() > 5 || !std::ranges::all_of(port, is_digit)) return false;
    text = text.substr(0, colon);
  }
  const auto is_plain = [](char c) { return is_letter(c) || is_digit(c); };
  return !text.empty() && is_plain(text.front()) && is_plain(text.back()) && !text.contains("..") &&
         std::ranges::all_of(text, [&](char c) { return is_plain(c) || c == '.' || c == '-'; });
}

/// [a-z0-9]+ with one '.', one or two '_', or any number of '-' between.
bool is_component(std::string_view text) {
  const auto is_plain = [](char c) { return is_lower(c) || is_digit(c); };
  if (text.empty() || !is_plain(text.front()) || !is_plain(text.back())) return false;
  for (std::size_t begin = 0; begin < text.size();) {
    if (is_plain(text[begin])) {
      ++begin;
      continue;
    }
    std::size_t end = begin;
    while (!is_plain(text[end])) ++end;
    const std::string_view between = text.substr(begin, end - begin);
    const bool is_separator = between == "." || between == "_" || between == "__" ||
                              std::ranges::all_of(between, [](char c) { return c == '-'; });
    if (!is_separator) return false;
    begin = end;
  }
  return true;
}

bool is_path(std::string_view path) {
  while (true) {
    const std::size_t slash = path.find('/');
    if (!is_component(path.substr(0, slash))) return false;
    if (slash == std::string_view::npos) return true;
    path.remove_prefix(slash + 1);
  }
}

bool is_tag(std::string_view text) {
  const auto is_word = [](char c) { return is_letter(c) || is_digit(c) || c == '_'; };
  return !text.empty() && text.size() <= tag_length_max && is_word(text.front()) &&
         std::ranges::all_of(text, [&](char c) { return is_word(c) || c == '.' || c == '-'; });
}

}  // namespace

bool is_digest(std::string_view text) {
  return text.starts_with(digest_algorithm) &&
         text.size() == digest_algorithm.size() + digest_digits_count &&
         std::ranges::all_of(text.substr(digest_algorithm.size()), is_hexadecimal);
}

std::string_view digest_digits(std::string_view text) {
  if (text.starts_with(digest_algorithm)) text.remove_prefix(digest_algorithm.size());
  const bool fits = text.size() >= digest_prefix_length_min && text.size() <= digest_digits_count &&
                    std::ranges::all_of(text, is_hexadecimal);
  return fits ? text : std::string_view();
}

std::string ImageName::text() const {
  return digest.empty() ? fmt::format("{}:{}", repository, tag)
                        : fmt::format("{}@{}", repository, digest);
}

Result<ImageName> parse_image_name(std::string_view text) {
  const std::string_view whole = text;
  const auto refuse = [whole](std::string_view why) {
    std::string shown(whole.substr(0, shown_length_max));
    std::ranges::replace_if(shown, [](char c) { return c < ' ' || c == 0x7f; }, '?');
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is no name of an image: {}", shown, why));
  };
  ImageName name;
  if (const std::size_t at = text.find('@'); at != std::string_view::npos) {
    name.digest = text.substr(at + 1);
    if (!is_digest(name.digest))
      return refuse("a digest is sha256: and 64 hexadecimal digits, in lower case");
    text = text.substr(0, at);
  }
  const std::size_t last_slash = text.rfind('/');
  const std::size_t colon = text.rfind(':');
  const bool has_tag = colon != std::string_view::npos &&
                       (last_slash == std::string_view::npos || colon > last_slash);
  if (has_tag) {
    name.tag = text.substr(colon + 1);
    if (!is_tag(name.tag))
      return refuse(
          "a tag has up to 128 letters, digits, '_', '.' and '-', and begins with none "
          "of the last two");
    text = text.substr(0, colon);
  }
  std::string registry(default_registry);
  std::string path(text);
  if (const std::size_t slash = text.find('/'); slash != std::string_view::npos) {
    // What has a dot or a port is a host; else it is a user of the default registry.
    const std::string_view first = text.substr(0, slash);
    if (first == "localhost" || first.contains('.') || first.contains(':')) {
      if (!is_registry(first)) return refuse("its registry is no host, or host:port");
      registry = first == "index.docker.io" ? default_registry : first;
      path = text.substr(slash + 1);
    }
  }
  if (!is_path(path)) {
    return refuse(
        "use lower-case letters and digits, with '.', '_' and '-' between them, "
        "[REGISTRY/]PATH[:TAG]");
  }
  if (registry == default_registry && !path.contains('/')) path = "library/" + path;
  name.repository = fmt::format("{}/{}", registry, path);
  if (name.repository.size() > repository_length_max)
    return refuse(fmt::format("it has more than {} characters", repository_length_max));
  if (!name.digest.empty()) {
    name.tag.clear();
  } else if (name.tag.empty()) {
    name.tag = "latest";
  }
  return name;
}

}  // namespace berth::container
