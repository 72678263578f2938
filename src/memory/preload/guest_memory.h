// The file that the machine's memory is of, as the preload sees it, and its mapping: tracked (a
// memory object of its own, mapped shared) or a clone's (a sealed template, mapped privately).
//
// The environment is read before main(); the memory is mapped by QEMU's main thread, and pieces of
// it are mapped anew by the thread of the channel. Without the C++ library.
#pragma once

#include <cstddef>

#include "memory/preload/channel_format.h"

namespace berth::memory::preload {

/// Says why, in one line on standard error, and ends the process.
[[noreturn]] void give_up(const char* what, int error);

/// Takes the file's name out of the environment, and looks at it; gives up where it is no memory
/// object, or no sealed template.
void find_guest_memory();

/// Whether what may be opened by this name, or is open, is the machine's memory.
bool is_guest_memory(int directory, const char* path);
bool is_guest_memory(int fd);
/// Its file is not ours to change in any way.
bool is_clone();

/// mmap(2) of the machine's memory. Gives up where it is asked for in a way that is not ours, or
/// cannot be tracked; MAP_FAILED, with errno, where the kernel refuses.
void* map_guest_memory(void* address, std::size_t length, int protection, int flags, int fd,
                       long offset);

/// Where the memory is; its status is `not_mapped` before it is.
void describe_guest_memory(channel::Answer& answer);

/// Maps these ranges of the file over those of the memory: privately, but for the memory object
/// itself, which is mapped as QEMU does it, and tracked again. All is checked before the first one;
/// the kernel maps a range whole or not at all, and the answer says how many it has mapped. Where
/// it leaves a gap instead, the process ends.
void map_into_guest_memory(int fd, const channel::Range* ranges, unsigned count,
                           channel::Answer& answer);

}  // namespace berth::memory::preload
