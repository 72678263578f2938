// Kernels for tests: as distributions ship them, with nothing in them that could be run.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include <elf.h>

namespace berth::container {

template <typename T>
void put(std::string& bytes, std::size_t at, const T& value) {
  if (bytes.size() < at + sizeof(T)) bytes.resize(at + sizeof(T));
  std::memcpy(bytes.data() + at, &value, sizeof(T));
}

/// With one note, behind another one, and a byte of its own so that it is not only zeros.
inline std::string make_kernel(std::uint32_t note_type = 18,
                               const std::string& owner = std::string("Xen\0", 4)) {
  constexpr std::size_t notes_at = 0x1000;
  std::string kernel;
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_machine = EM_X86_64;
  header.e_phoff = sizeof header;
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = 2;
  put(kernel, 0, header);
  std::string notes;
  put(notes, 0, Elf64_Nhdr{.n_namesz = 6, .n_descsz = 1, .n_type = 18});
  notes += std::string("Linux\0\0\0", 8) + std::string("x\0\0\0", 4);
  put(notes, notes.size(), Elf64_Nhdr{.n_namesz = 4, .n_descsz = 4, .n_type = note_type});
  notes += owner + "entr";
  put(kernel, sizeof header,
      Elf64_Phdr{.p_type = PT_LOAD,
                 .p_flags = 0,
                 .p_offset = 0,
                 .p_vaddr = 0,
                 .p_paddr = 0,
                 .p_filesz = 64,
                 .p_memsz = 64,
                 .p_align = 0});
  put(kernel, sizeof header + sizeof(Elf64_Phdr),
      Elf64_Phdr{.p_type = PT_NOTE,
                 .p_flags = 0,
                 .p_offset = notes_at,
                 .p_vaddr = 0,
                 .p_paddr = 0,
                 .p_filesz = notes.size(),
                 .p_memsz = 0,
                 .p_align = 4});
  kernel.resize(notes_at);
  kernel += notes + std::string(300'000, 'k');
  return kernel;
}

/// As `lz4 -l` has it, which the kernel's build calls: nothing but literals.
inline std::string lz4_legacy(const std::string& bytes) {
  std::string block("\xf0", 1);
  std::size_t left = bytes.size() - 15;
  for (; left >= 255; left -= 255) block += '\xff';
  block += static_cast<char>(left);
  block += bytes;
  std::string packed("\x02\x21\x4c\x18", 4);
  put(packed, 4, static_cast<std::uint32_t>(block.size()));
  return packed + block;
}

/// A bzImage with this payload; `size`: what is behind it, unpacked.
inline std::string make_image(const std::string& payload, const std::string& size) {
  constexpr std::size_t begin = 3 * 512;  // two sectors of setup, and the one before them
  constexpr std::uint32_t offset = 100;
  std::string image(begin + offset, 'b');
  put(image, 0x1f1, std::uint8_t{2});
  image.replace(0x202, 4, "HdrS");
  put(image, 0x206, std::uint16_t{0x20f});
  put(image, 0x248, offset);
  put(image, 0x24c, static_cast<std::uint32_t>(payload.size() + size.size()));
  return image + payload + size + "what is behind it";
}

}  // namespace berth::container
