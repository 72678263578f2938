#include "machine/backing_specification.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/fd.h"
#include "machine/layout.h"

namespace berth::machine {
namespace {

using Kind = BackingSpecification::Kind;

constexpr std::array<std::string_view, 5> image_formats = {"qcow2", "vmdk", "vhdx", "vdi", "vpc"};
constexpr std::array<std::string_view, 4> nbd_schemes = {"nbd://", "nbds://", "nbd+unix://",
                                                         "nbds+unix://"};

std::unexpected<Error> refuse(std::string_view text, std::string_view why) {
  return failure(ErrorKind::invalid_argument,
                 fmt::format("'{}' is not a backing: {}", text.substr(0, 200), why));
}

Result<BackingSpecification> parse_path(std::string_view text, Kind kind, std::string_view format,
                                        std::string_view path) {
  if (!path.starts_with('/')) return refuse(text, "write an absolute path");
  return BackingSpecification{
      .kind = kind, .path = std::string(path), .format = std::string(format)};
}

Result<BackingSpecification> parse_checkpoint(std::string_view text, std::string_view name) {
  const auto at = name.find('@');
  if (at == std::string_view::npos || at + 1 == name.size()) {
    return refuse(text, "write volume:NAME@CHECKPOINT; only a checkpoint does not change");
  }
  BackingSpecification backing{.kind = Kind::volume_checkpoint};
  backing.volume = name.substr(0, at);
  backing.checkpoint = name.substr(at + 1);
  TRY(check_name("volume", backing.volume));
  TRY(check_point_name("checkpoint", backing.checkpoint));
  return backing;
}

bool has_at(Bytes head, std::size_t offset, std::string_view magic) {
  return head.size() >= offset + magic.size() &&
         as_text(head.subspan(offset, magic.size())) == magic;
}

/// qcow2 (QEMU, docs/interop/qcow2.txt): the backing file's name at 8, incompatible features at 72
/// from version 3 on, whose bit 2 is an external data file.
bool qcow2_names_other_files(Bytes head) {
  if (head.size() < 80) return true;
  const bool backing_file = load_be<std::uint64_t>(head.data() + 8) != 0;
  const auto version = load_be<std::uint32_t>(head.data() + 4);
  const bool data_file = version >= 3 && (load_be<std::uint64_t>(head.data() + 72) & 4U) != 0;
  return backing_file || data_file;
}

/// A sparse VMDK (VMware, Virtual Disk Format 5.0, "Hosted sparse extents"): its descriptor lies in
/// it, and may name a parent. An image of capacity 0 is its descriptor; one whose grain directory
/// is at the end has another header there, which counts.
bool vmdk_names_other_files(Bytes head) {
  constexpr std::size_t sector = 512;
  constexpr std::size_t descriptor_size = 20 * sector;  // what QEMU reads of it
  if (head.size() < sector) return true;
  const auto capacity = load_le<std::uint64_t>(head.data() + 12);
  const auto descriptor = load_le<std::uint64_t>(head.data() + 28);
  const auto grain_directory = load_le<std::uint64_t>(head.data() + 56);
  if (capacity == 0 || grain_directory == UINT64_MAX) return true;
  if (descriptor == 0 ||
      descriptor > (head.size() - std::min(head.size(), descriptor_size)) / sector)
    return true;
  return as_text(head.subspan(descriptor * sector, descriptor_size)).contains("parentFileNameHint");
}

}  // namespace

Result<BackingSpecification> parse_backing(std::string_view text) {
  if (text.empty() || text.size() > backing_length_max || text.contains('\0')) {
    return refuse(text, fmt::format("it must have 1 to {} bytes", backing_length_max));
  }
  if (text.starts_with('/')) return parse_path(text, Kind::unknown_file, "", text);
  for (const auto scheme : nbd_schemes) {
    if (text.starts_with(scheme))
      return BackingSpecification{.kind = Kind::nbd, .uri = std::string(text)};
  }
  const auto colon = text.find(':');
  if (colon == std::string_view::npos) return refuse(text, "write an absolute path");
  const auto prefix = text.substr(0, colon);
  const auto rest = text.substr(colon + 1);
  if (prefix == "file" || prefix == "raw") return parse_path(text, Kind::raw_file, "", rest);
  if (prefix == "volume") return parse_checkpoint(text, rest);
  if (std::ranges::find(image_formats, prefix) != image_formats.end())
    return parse_path(text, Kind::image, prefix, rest);
  return refuse(
      text, "use a path, file:, qcow2:, vmdk:, vhdx:, vdi:, vpc:, volume: or an nbd:// address");
}

std::string to_string(const BackingSpecification& backing) {
  switch (backing.kind) {
    case Kind::unknown_file: return backing.path;
    case Kind::raw_file: return "file:" + backing.path;
    case Kind::image: return backing.format + ':' + backing.path;
    case Kind::volume_checkpoint:
      return fmt::format("volume:{}@{}", backing.volume, backing.checkpoint);
    case Kind::nbd: return backing.uri;
  }
  return {};
}

ImageFormat recognise_image(Bytes head) {
  using namespace std::string_view_literals;
  if (has_at(head, 0, "QFI\xfb")) return {"qcow2", qcow2_names_other_files(head)};
  if (has_at(head, 0, "KDMV")) return {"vmdk", vmdk_names_other_files(head)};
  if (has_at(head, 0, "COWD") || has_at(head, 0, "# Disk DescriptorFile")) return {"vmdk", true};
  if (has_at(head, 0, "vhdxfile")) return {"vhdx", false};
  if (has_at(head, 64, "\x7f\x10\xda\xbe"sv)) return {"vdi", false};
  if (has_at(head, 0, "conectix")) return {"vpc", false};
  return {"raw", false};
}

Result<BackingSpecification> settle_format(BackingSpecification backing) {
  if (backing.kind != Kind::unknown_file) return backing;
  const Fd fd(::open(backing.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status{};
  if (!fd || ::fstat(fd.get(), &status) != 0)
    return errno_failure(errno, fmt::format("cannot open '{}'", backing.path));
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is neither a file nor a block device", backing.path));
  }
  std::vector<std::byte> head(image_head_size);
  const ssize_t got = ::pread(fd.get(), head.data(), head.size(), 0);
  if (got < 0) return errno_failure(errno, fmt::format("cannot read '{}'", backing.path));

  const ImageFormat format = recognise_image(Bytes(head).first(static_cast<std::size_t>(got)));
  if (format.names_other_files) {
    return failure(
        ErrorKind::precondition,
        fmt::format(
            "'{0}' is a {1} image that may name other files to be opened: write "
            "'{1}:{0}' if you trust it, 'file:{0}' if it is a raw disk with such an image in it",
            backing.path, format.name));
  }
  backing.kind = format.name == "raw" ? Kind::raw_file : Kind::image;
  backing.format = format.name == "raw" ? "" : format.name;
  return backing;
}

}  // namespace berth::machine
