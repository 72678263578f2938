// Whether guests run in the CPU's own virtualization here, or emulated.
#pragma once

#include <sys/types.h>

namespace berth::machine {

/// KVM where the CPU shows vmx or svm and /dev/kvm makes machines (DESIGN §9: a device that opens
/// proves nothing).
bool has_kvm();
/// The group that /dev/kvm belongs to.
gid_t kvm_group();

}  // namespace berth::machine
