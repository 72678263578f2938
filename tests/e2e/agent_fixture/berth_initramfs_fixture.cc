// Writes the initramfs of microVMs, without the rest of Berth: for tests and measurements.
//
//   berth-initramfs-fixture AGENT MODULES_DIRECTORY OUTPUT

#include <cstdio>
#include <fstream>

#include "container/initramfs.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fputs("usage: berth-initramfs-fixture AGENT MODULES_DIRECTORY OUTPUT\n", stderr);
    return 2;
  }
  const auto made = berth::container::make_initramfs({.agent = argv[1], .modules = argv[2]});
  if (!made) {
    std::fprintf(stderr, "berth-initramfs-fixture: %s\n", made.error().message().c_str());
    return 1;
  }
  std::ofstream output(argv[3], std::ios::binary | std::ios::trunc);
  output << *made;
  return output.flush() ? 0 : 1;
}
