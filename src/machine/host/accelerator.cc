#include "machine/host/accelerator.h"

#include <sys/stat.h>

#include "machine/host/probes.h"

namespace berth::machine {

bool has_kvm() { return probe_kvm(HostView{}).state == CheckState::found; }

gid_t kvm_group() {
  struct stat status{};
  return ::stat("/dev/kvm", &status) == 0 ? status.st_gid : 0;
}

}  // namespace berth::machine
