// What long work tells whoever asked for it, and how it learns that it should end. On the work's
// thread.
#pragma once

#include "base/result.h"
#include "machine/control_protocol.h"

namespace berth::machine {

class JobObserver {
 public:
  virtual ~JobObserver() = default;
  /// `cancelled` once somebody has asked for the end: CO_TRY(observer.check()). Work looks now and
  /// then.
  virtual Result<void> check() const = 0;
  /// Cheap: it may be called for every piece.
  virtual void report(const ControlProgress& progress) = 0;
};

}  // namespace berth::machine
