#include "disk/sabotage.h"

namespace berth::disk {

#ifdef BERTH_SABOTAGE
Sabotage active_sabotage = Sabotage::none;
#endif

}  // namespace berth::disk
