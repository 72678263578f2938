// A Linux kernel as distributions ship it (bzImage) holds the kernel itself compressed, with a
// program before it that unpacks it and chooses where it is to run. An emulated CPU takes about a
// second for that: so it is unpacked here, once.
//
// Source: Linux, Documentation/arch/x86/boot.rst (payload_offset, payload_length), and
// Documentation of Xen, "x86/HVM direct boot ABI" (XEN_ELFNOTE_PHYS32_ENTRY), by which QEMU boots
// what was unpacked.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace berth::container {

/// The kernel in a bzImage: an ELF file. `unsupported` where it is none, is compressed as nobody
/// here knows, or has no entry by which it could be booted as it is. Hundreds of milliseconds.
Result<std::string> unpack_kernel(std::string_view image);

}  // namespace berth::container
