// The kernels that microVMs run, of one state directory:
//
//   kernels/RELEASE/vmlinuz        the kernel
//   kernels/RELEASE/vmlinux        the same unpacked, where that can be booted (kernel_image.h)
//   kernels/RELEASE/modules/       lib/modules/RELEASE of its package
//   kernels/RELEASE/kernel.json    {release, source, imported_at}
//   kernels/RELEASE/initrd-DIGITS  the initramfs, made when it is first needed; DIGITS are of the
//                                  agent that is in it
//   kernels/.making-…              leftovers, unless somebody is at it
//
// Blocking; any thread. Nothing is installed on the host.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "container/initramfs.h"
#include "machine/volume_store.h"

namespace berth::container {

struct KernelRecord {
  std::string release;  // "6.1.0-56-cloud-amd64"
  std::string source;   // the file it came from, or the package's name
  std::string imported_at;
};

/// Where a kernel is to come from; nothing given: Debian's package, as apt offers it.
struct KernelSource {
  std::string package;  // path of a .deb with a kernel
  std::string image;    // or a kernel
  std::string modules;  // and the directory of its modules, called as its release
};

class KernelStore {
 public:
  explicit KernelStore(std::string state_dir);

  /// Removes what a dead process has left. Once, first.
  Result<void> open() const;
  /// The newest import first.
  Result<std::vector<KernelRecord>> list() const;
  /// The newest; `precondition` where there is none, with how to get one.
  Result<KernelRecord> current() const;
  /// Unpacks it. One that is there is replaced.
  Result<KernelRecord> import(const KernelSource& source, const std::string& imported_at,
                              const machine::VolumeJob& job) const;

  std::string image(const std::string& release) const;
  /// "" for none.
  std::string unpacked(const std::string& release) const;
  /// Path of its initramfs, with the agent of this very build.
  Result<std::string> initrd(const std::string& release) const;

 private:
  std::string path(const std::string& release) const;
  std::string state_dir_;
  mutable std::mutex mutex_;  // while one is made
};

/// Path of berth-agent: beside this program, or in ../lib/berth from there. not_found.
Result<std::string> find_agent();

}  // namespace berth::container
