// The socket on which whoever looks after a machine has pieces of its memory mapped from another
// file: a thread of its own inside QEMU (memory/memory_channel.h is the other side).
//
// Nobody but root and QEMU's own user is served, one client at a time; who is silent for too long
// is hung up on. The thread handles no signals, and calls nothing but the kernel.
#pragma once

namespace berth::memory::preload {

/// Serves it under this name for as long as the process lives; what a process that has ended left
/// there goes. Before main(), so before any sandbox; gives up where it cannot.
void serve_memory_channel(const char* path);

}  // namespace berth::memory::preload
