// What a microVM's kernel starts with: our agent, and the modules without which it would see
// neither its disks nor us.
//
// Blocking; reads files only. The same agent and the same kernel give the same bytes.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/result.h"

namespace berth::container {

/// As in the kernel's sources. Each comes after what it depends on.
inline const std::vector<std::string> microvm_modules{"virtio_pci", "virtio_blk", "virtio_console",
                                                      "virtio-rng", "virtio_net", "erofs",
                                                      "ext4",       "overlay"};

struct InitramfsSpec {
  std::filesystem::path agent;    // berth-agent
  std::filesystem::path modules;  // lib/modules/RELEASE of the kernel
  std::vector<std::string> names = microvm_modules;
};

/// The archive, uncompressed: what an emulated CPU unpacks costs more than what it copies.
/// not_found for a module that the kernel neither has nor has built in; io_error, corrupt.
Result<std::string> make_initramfs(const InitramfsSpec& spec);

/// The files of these modules and of all that they depend on, each after what it needs.
/// Dependencies are what the modules themselves say: a package has no modules.dep.
Result<std::vector<std::filesystem::path>> modules_to_load(const std::filesystem::path& modules,
                                                           const std::vector<std::string>& names);

}  // namespace berth::container
