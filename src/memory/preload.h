// Starting a program, QEMU, with our small library inside (memory/preload/libberth_preload.cc),
// which makes its memory object one that DirtyScan can look at, or itself a clone of a template.
//
// Any thread.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace berth::memory {

/// Path of libberth-preload.so: beside this program, or in ../lib/berth from there. not_found.
Result<std::string> find_preload();

/// NAME=VALUE to be put into the environment of the program. Privileges are dropped before the exec
/// that it is for: the dynamic loader ignores it where privileges are gained. The user that QEMU
/// runs as has to be able to read the library. invalid_argument if the library's path has a blank
/// or a colon in it, which LD_PRELOAD cannot hold. `channel`: where QEMU is to serve the socket
/// that GuestMemory takes, in a directory of its own; the program does not run if it cannot. No
/// socket if empty: such a machine cannot be parked.
Result<std::vector<std::string>> preload_environment(const std::string& library,
                                                     const std::string& memory_file,
                                                     const std::string& channel = {});

/// The same for a clone: its memory is that of the template, a memory object that is sealed
/// (seal_memory_object), and what it writes is its own. QEMU is given the template as if it were
/// its own memory object: a memory-backend-file with share=on and without prealloc. Such a memory
/// cannot be tracked, and does not shrink: no balloon, no free page reporting, no virtio-mem, and
/// no vhost-user.
Result<std::vector<std::string>> clone_environment(const std::string& library,
                                                   const std::string& template_file,
                                                   const std::string& channel = {});

}  // namespace berth::memory
