#include "container/kernel_image.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>

#include <elf.h>

#include "base/units.h"
#include "container/decompress.h"

namespace berth::container {
namespace {

// Of the header (boot.rst), bytes from the beginning of the file.
constexpr std::size_t setup_sectors_at = 0x1f1;
constexpr std::size_t magic_at = 0x202;
constexpr std::string_view magic = "HdrS";
constexpr std::size_t protocol_at = 0x206;
constexpr std::uint16_t protocol_min = 0x208;  // from which on it says where the payload is
constexpr std::size_t payload_offset_at = 0x248;
constexpr std::size_t payload_length_at = 0x24c;
constexpr std::size_t header_end = 0x250;
constexpr std::size_t sector = 512;
constexpr std::size_t setup_sectors_default = 4;

constexpr std::string_view gzip_magic = "\x1f\x8b";
constexpr std::size_t size_word = 4;  // behind what is compressed otherwise: its size, unpacked
constexpr std::size_t unpacked_max = 512 * MiB;

constexpr std::uint32_t note_entry = 18;  // XEN_ELFNOTE_PHYS32_ENTRY
constexpr std::string_view note_owner{"Xen\0", 4};

std::unexpected<Error> refuse(std::string why) {
  return failure(ErrorKind::unsupported, "the kernel cannot be unpacked: " + std::move(why));
}

/// What stands there, as it is in memory; nothing beyond the end.
template <typename T>
std::optional<T> read_at(std::string_view bytes, std::size_t at) {
  if (at > bytes.size() || bytes.size() - at < sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

Result<std::string_view> find_payload(std::string_view image) {
  if (image.size() < header_end || image.substr(magic_at, magic.size()) != magic ||
      *read_at<std::uint16_t>(image, protocol_at) < protocol_min)
    return refuse("it is no bzImage");
  std::size_t sectors = *read_at<std::uint8_t>(image, setup_sectors_at);
  if (sectors == 0) sectors = setup_sectors_default;
  const std::size_t begin =
      (sectors + 1) * sector + *read_at<std::uint32_t>(image, payload_offset_at);
  const std::size_t length = *read_at<std::uint32_t>(image, payload_length_at);
  if (begin > image.size() || image.size() - begin < length || length < size_word)
    return refuse("its payload is not in it");
  const std::string_view payload = image.substr(begin, length);
  return payload.starts_with(gzip_magic) ? payload : payload.substr(0, payload.size() - size_word);
}

/// Whether one of these notes says where QEMU may enter it.
bool has_entry(std::string_view notes) {
  const auto padded = [](std::size_t length) { return (length + 3) / 4 * 4; };
  std::size_t at = 0;
  while (const auto note = read_at<Elf64_Nhdr>(notes, at)) {
    at += sizeof(Elf64_Nhdr);
    if (note->n_type == note_entry &&
        notes.substr(std::min(at, notes.size())).starts_with(note_owner))
      return true;
    at += padded(note->n_namesz) + padded(note->n_descsz);
  }
  return false;
}

bool can_be_booted(std::string_view kernel) {
  const auto header = read_at<Elf64_Ehdr>(kernel, 0);
  if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 ||
      header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_machine != EM_X86_64 ||
      header->e_phentsize != sizeof(Elf64_Phdr))
    return false;
  for (std::size_t i = 0; i < header->e_phnum; ++i) {
    const auto segment = read_at<Elf64_Phdr>(kernel, header->e_phoff + i * sizeof(Elf64_Phdr));
    if (!segment) return false;
    if (segment->p_type == PT_NOTE && segment->p_offset < kernel.size() &&
        has_entry(kernel.substr(segment->p_offset, segment->p_filesz)))
      return true;
  }
  return false;
}

}  // namespace

Result<std::string> unpack_kernel(std::string_view image) {
  const std::string_view payload = TRY(find_payload(image));
  auto kernel = decompress(payload, unpacked_max);
  if (!kernel) return refuse(kernel.error().message());
  if (!can_be_booted(*kernel))
    return refuse("it has no entry for a machine without firmware (PVH)");
  return kernel;
}

}  // namespace berth::container
