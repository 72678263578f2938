#include "memory/process_maps.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <optional>
#include <set>

#include <fcntl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <fmt/format.h>

namespace berth::memory {
namespace {

constexpr std::size_t maps_length_max = std::size_t{64} << 20;  // bytes; a QEMU has some 50 KB

/// Text between blanks, one after the other, of one line of /proc/PID/maps.
class Fields {
 public:
  explicit Fields(std::string_view line) : rest_(line) {}

  std::string_view text(char end = ' ') {
    const auto length = std::min(rest_.find(end), rest_.size());
    const auto field = rest_.substr(0, length);
    rest_.remove_prefix(std::min(length + 1, rest_.size()));
    return field;
  }
  std::uint64_t number(char end, int base = 16) {
    const auto field = text(end);
    std::uint64_t value = 0;
    const auto [last, error] = std::from_chars(field.begin(), field.end(), value, base);
    good_ = good_ && error == std::errc() && last == field.end();
    return value;
  }
  bool good() const { return good_; }

 private:
  std::string_view rest_;
  bool good_ = true;
};

std::optional<Mapping> parse_mapping(std::string_view line) {
  Fields fields(line);
  Mapping mapping;
  mapping.address = fields.number('-');
  const std::uint64_t end = fields.number(' ');
  const std::string_view permissions = fields.text();
  mapping.offset = fields.number(' ');
  const std::uint64_t device_major = fields.number(':');
  const std::uint64_t device_minor = fields.number(' ');
  mapping.inode = fields.number(' ', 10);
  if (!fields.good() || end <= mapping.address || permissions.size() != 4) return std::nullopt;
  mapping.length = end - mapping.address;
  mapping.device =
      makedev(static_cast<unsigned>(device_major), static_cast<unsigned>(device_minor));
  mapping.is_shared = permissions[3] == 's';
  mapping.is_writable = permissions[1] == 'w';
  mapping.is_code = permissions[2] == 'x';
  std::string_view name = fields.text('\n');
  name.remove_prefix(std::min(name.find_first_not_of(' '), name.size()));
  mapping.is_named = !name.empty() && name != "[heap]";
  return mapping;
}

/// Calls `use(mapping, path)` for each; the path is empty where it is of no file.
template <typename Use>
void for_each_mapping(std::string_view text, Use use) {
  while (!text.empty()) {
    const auto line = text.substr(0, text.find('\n'));
    if (const auto mapping = parse_mapping(line))
      use(*mapping, line.substr(std::min(line.find('/'), line.size())));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
  }
}

}  // namespace

Result<ProcessMaps> ProcessMaps::open(pid_t pid, std::string name) {
  Fd maps(::open(fmt::format("/proc/{}/maps", pid).c_str(), O_RDONLY | O_CLOEXEC));
  if (!maps) return errno_failure(errno, fmt::format("cannot look at the {}", name));
  return ProcessMaps(std::move(name), std::move(maps));
}

Result<std::vector<Mapping>> ProcessMaps::read() {
  const std::string_view text = TRY(read_text());
  std::vector<Mapping> mappings;
  for_each_mapping(text, [&](const Mapping& mapping, std::string_view /*path*/) {
    mappings.push_back(mapping);
  });
  return mappings;
}

Result<std::map<std::string, std::uint64_t>> ProcessMaps::programs() {
  const std::string_view text = TRY(read_text());
  std::map<std::string, std::uint64_t> files;
  std::set<std::string> with_code;
  for_each_mapping(text, [&](const Mapping& mapping, std::string_view path) {
    if (path.empty()) return;
    std::uint64_t& end = files[std::string(path)];
    end = std::max(end, mapping.offset + mapping.length);
    if (mapping.is_code) with_code.emplace(path);
  });
  std::erase_if(files, [&](const auto& file) { return !with_code.contains(file.first); });
  return files;
}

/// Good until the next call.
Result<std::string_view> ProcessMaps::read_text() {
  std::size_t length = 0;
  if (::lseek(maps_.get(), 0, SEEK_SET) != 0)
    return errno_failure(errno, fmt::format("cannot look at the {}", name_));
  for (;;) {
    if (length == text_.size()) {
      if (length >= maps_length_max) {
        return failure(ErrorKind::limit,
                       fmt::format("cannot look at the {}: too many mappings", name_));
      }
      text_.resize(2 * length);
    }
    const ssize_t got = ::read(maps_.get(), text_.data() + length, text_.size() - length);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno != ESRCH)
      return errno_failure(errno, fmt::format("cannot look at the {}", name_));
    if (got <= 0) break;
    length += static_cast<std::size_t>(got);
  }
  if (length == 0) {
    return failure(ErrorKind::disconnected,
                   fmt::format("cannot look at the {}: it has ended", name_));
  }
  return std::string_view(text_).substr(0, length);
}

}  // namespace berth::memory
