#include "testing/fault_plan.h"

#include <fnmatch.h>

namespace berth {

FaultPlan::Verdict FaultPlan::decide(std::uint32_t kind, const std::string& path,
                                     SimRandom& random) {
  Verdict verdict;
  for (Fault& fault : faults_) {
    if ((fault.on & kind) == 0 || fault.times == 0) continue;
    if (fnmatch(fault.path.c_str(), path.c_str(), 0) != 0) continue;
    if (fault.skip != 0) {
      --fault.skip;
      continue;
    }
    if (fault.chance < 1 && !random.chance(fault.chance)) continue;
    --fault.times;
    ++hits_;
    verdict.delay += fault.delay;
    if (verdict.error == 0) verdict.error = fault.error;
  }
  return verdict;
}

}  // namespace berth
