#include "container/ready_probe.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>

namespace berth::container {
namespace {

constexpr std::size_t text_max = 4096;  // bytes

bool is_request_path(std::string_view path) {
  return std::ranges::all_of(path, [](char c) { return c > ' ' && c < '\x7f'; });
}

}  // namespace

Result<ReadyProbe> parse_ready_probe(std::string_view text) {
  if (text.empty()) return ReadyProbe{};
  const auto wrong = [text] {
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("'{}' is no tcp:PORT, http:PORT[/PATH], log:TEXT or exec:COMMAND", text));
  };
  const std::size_t colon = text.find(':');
  if (colon == std::string_view::npos || text.size() > text_max || text.contains('\0'))
    return wrong();
  const std::string_view kind = text.substr(0, colon);
  const std::string_view rest = text.substr(colon + 1);
  ReadyProbe probe;
  if (kind == "log" || kind == "exec") {
    if (rest.empty()) return wrong();
    probe.kind = kind == "log" ? ReadyProbe::Kind::log : ReadyProbe::Kind::exec;
    probe.text = rest;
    return probe;
  }
  if (kind != "tcp" && kind != "http") return wrong();
  probe.kind = kind == "tcp" ? ReadyProbe::Kind::tcp : ReadyProbe::Kind::http;
  const char* end = rest.data() + rest.size();
  const auto [stop, code] = std::from_chars(rest.data(), end, probe.port);
  if (code != std::errc{} || probe.port == 0) return wrong();
  probe.path = std::string(stop, end);
  if (probe.kind == ReadyProbe::Kind::tcp) {
    if (!probe.path.empty()) return wrong();
    return probe;
  }
  if (probe.path.empty()) probe.path = "/";
  if (!probe.path.starts_with('/') || !is_request_path(probe.path)) return wrong();
  return probe;
}

}  // namespace berth::container
