// The words of a QEMU's command line, and those of them that every guest's has: machines' and
// microVMs'. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "machine/control_protocol.h"

namespace berth::machine {

/// In an option of QEMU's, a comma that belongs to a value is written twice.
std::string escaped_for_qemu(std::string_view value);

class QemuArguments {
 public:
  explicit QemuArguments(std::string program) : words_{std::move(program)} {}

  void add(std::string option) { words_.push_back(std::move(option)); }
  void add(std::string option, std::string value) {
    words_.push_back(std::move(option));
    words_.push_back(std::move(value));
  }
  void add_device(const Json& device) { add("-device", device.dump()); }

  /// Its name, nothing that nobody asked for, and the sandbox.
  void add_process(std::string_view guest);
  /// Emulated, with at most so much translated code.
  void add_accelerator(bool kvm, std::uint64_t tcg_code_bytes);
  /// The memory object `ram`, at `path`: shared, so that its pages are those of the file.
  void add_memory(std::uint64_t bytes, std::string_view path);
  /// A socket that QEMU serves, as the character device `id`.
  void add_socket(std::string_view id, std::string_view path, std::string_view more = {});
  /// The monitor, on such a socket.
  void add_monitor(std::string_view path);

  std::vector<std::string> take() { return std::move(words_); }

 private:
  std::vector<std::string> words_;
};

}  // namespace berth::machine
