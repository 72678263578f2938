// What this host has to run guests with, as the stamps of templates name it. Blocking; any thread.
#pragma once

#include <map>
#include <mutex>
#include <string>

#include "base/result.h"
#include "container/kernel_store.h"
#include "container/template_record.h"

namespace berth::container {

class HostStamp {
 public:
  explicit HostStamp(const KernelStore& kernels) : kernels_(kernels) {}

  /// All but the image. Programs are looked at again when their files have changed. `precondition`
  /// where there is no kernel, not_found where there is no QEMU.
  Result<TemplateStamp> now();

 private:
  /// What tells a file from what it was before.
  struct FileState {
    std::uint64_t inode = 0;
    std::uint64_t size = 0;
    std::int64_t changed_ns = 0;
    friend bool operator==(const FileState&, const FileState&) = default;
  };
  struct Known {
    FileState state;
    std::string value;
  };
  template <typename Look>
  Result<std::string> remembered(const std::string& path, Look look);

  const KernelStore& kernels_;
  std::mutex mutex_;
  std::map<std::string, Known> known_;  // by path
};

}  // namespace berth::container
