#include "machine/host/available_memory.h"

#include "machine/host/host_text.h"
#include "machine/small_file.h"

namespace berth::machine {

std::uint64_t available_memory() {
  const auto text = read_small_file("/proc/meminfo");
  return text ? meminfo_bytes(*text, "MemAvailable").value_or(0) : 0;
}

}  // namespace berth::machine
