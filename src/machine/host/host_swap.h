// Swap that the memory of paused guests can go to, set up and taken away by Berth: compressed in
// RAM (zram), in a file, and a compressed cache in front of that (zswap). What others have set up
// is seen, and left alone.
//
// Blocking, as long as disk and memory take; any thread, one call at a time. Needs root
// (`permission`). It lasts until the host restarts.
//
// Source: Linux, Documentation/admin-guide/blockdev/zram.rst and admin-guide/mm/zswap.rst.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "machine/host/host_text.h"
#include "machine/host/host_view.h"

namespace berth::machine {

/// What only a real kernel can do; tests have others. Paths are without HostView's root.
struct SwapCalls {
  std::function<Result<void>(const std::string& path)> format;  // as swap, with our label
  std::function<Result<void>(const std::string& path, int priority)> begin;
  std::function<Result<void>(const std::string& path)> end;

  static SwapCalls of_this_host();
};

class HostSwap {
 public:
  explicit HostSwap(HostView host, SwapCalls calls = SwapCalls::of_this_host())
      : host_(std::move(host)), calls_(std::move(calls)) {}

  struct Area {
    SwapArea area;
    bool is_ours = false;
  };
  struct Status {
    std::vector<Area> areas;
    bool has_zram = false;  // the kernel can
    std::string zswap;      // on, off, or missing
  };
  Status status() const;

  /// One more device of this many bytes, before they are compressed. `unsupported` where the kernel
  /// has no zram.
  Result<void> add_zram(std::uint64_t bytes) const;
  /// A file in the state directory; `already_exists` where it is in use. `no_space`; `unsupported`
  /// where the file system cannot be swapped to.
  Result<void> add_file(std::uint64_t bytes) const;
  /// `unsupported` where the kernel has no zswap.
  Result<void> set_zswap(bool on) const;
  /// Takes away what is ours; what was swapped out there comes back to RAM. `limit` where it does
  /// not fit there. zswap stays as it is.
  Result<void> undo() const;

 private:
  std::string file() const { return host_.state_dir + "/swap"; }
  bool has_zram() const;
  bool is_ours(const SwapArea& area) const;
  Result<void> write(const std::string& absolute, const std::string& text) const;
  Result<void> make_file(std::uint64_t bytes) const;

  const HostView host_;
  const SwapCalls calls_;
};

}  // namespace berth::machine
