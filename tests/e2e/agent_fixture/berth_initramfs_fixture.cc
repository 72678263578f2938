// Writes the initramfs of microVMs, without the rest of Berth: for tests and measurements.
//
//   berth-initramfs-fixture AGENT MODULES_DIRECTORY OUTPUT
//   berth-initramfs-fixture KERNEL OUTPUT      and its kernel, unpacked

#include <cstdio>
#include <fstream>
#include <sstream>

#include "container/initramfs.h"
#include "container/kernel_image.h"

namespace {

berth::Result<std::string> unpacked(const char* kernel) {
  std::ostringstream image;
  image << std::ifstream(kernel, std::ios::binary).rdbuf();
  return berth::container::unpack_kernel(image.view());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::fputs("usage: berth-initramfs-fixture (AGENT MODULES_DIRECTORY | KERNEL) OUTPUT\n",
               stderr);
    return 2;
  }
  const auto made = argc == 3
                        ? unpacked(argv[1])
                        : berth::container::make_initramfs({.agent = argv[1], .modules = argv[2]});
  if (!made) {
    std::fprintf(stderr, "berth-initramfs-fixture: %s\n", made.error().message().c_str());
    return 1;
  }
  std::ofstream output(argv[argc - 1], std::ios::binary | std::ios::trunc);
  output << *made;
  return output.flush() ? 0 : 1;
}
