// From the first instruction of PID 1 to a guest that is in its image: file systems of the kernel,
// modules, disks, root.
//
// What the initramfs has: /init (this program), /modules/order (names of files there, one a line,
// in the order in which they are loaded), and the directories that are mounted on.
#pragma once

#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace berth::agent {

constexpr const char* image_serial = "berth-image";  // of the virtio disk with the EROFS
constexpr const char* overlay_serial =
    "berth-overlay";  // of the one with an ext4, where there is one

/// /proc, /sys and /dev; the console as standard output and error.
Result<void> mount_kernel_file_systems();
/// In their order; goes on after one that does not load, and says which was the first.
Result<void> load_modules();
/// The virtio port of this name, not blocking. Waits for it for a while.
Result<Fd> open_port(const std::string& name);
/// The image below a writable overlay, with all that a container expects to be mounted, as the
/// root. `overlay` becomes the way to the overlay's file system, which nobody sees any more.
Result<void> enter_image(Fd& overlay);
/// Makes file systems clean, as far as nobody writes to them.
void leave_image(const Fd& overlay);
/// The loopback interface up, and limits that suit what is started.
Result<void> prepare_kernel();

}  // namespace berth::agent
