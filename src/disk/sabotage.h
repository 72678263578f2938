// Deliberate breaches of the engine's rules (DESIGN §5), one for each, so that the simulation can
// prove that it would notice them. Only builds with BERTH_SABOTAGE have them; in the product every
// question below is the constant `false`.
#pragma once

#include <cstdint>

namespace berth::disk {

enum class Sabotage : std::uint8_t {
  none = 0,
  cap_live_epochs,        // rule 1: changes(until) takes a live epoch beyond `until` for unchanged
  reuse_recovered_epoch,  // rule 2: the epoch is not advanced after recovery
  data_before_intent,     // rule 3: writes do not wait for their intent
  presence_before_data,   // rule 4: a flush captures the map after it has synced the data
  cut_without_drain,      // rule 5: the epoch advances while writes are in flight
  ignore_expired_lease,   // rule 6: a cut commits although its gate had opened again
  drop_layer_with_its_own,  // rule 7: a layer goes with its checkpoint although older ones need it
  trust_first_look,         // rule 8: a checkpoint reader does not look at the index again
  ignore_nonce,             // rule 9: a reference point is known by its name alone
  zero_becomes_absent,      // rule 10: write-zeroes over a backing ends in `absent`
  forget_revert,            // rule 11: a revert cut short is not rolled forward
  ignore_changed_data,      // rule 9: a moved data file is taken for the old one whatever its times
  settle_before_sync,       // rule 9: the new place is recorded before what lies there is durable
  vouch_for_copies,         // rule 9: a copy keeps the reference points of its original
};

#ifdef BERTH_SABOTAGE
extern Sabotage active_sabotage;
inline bool sabotaged(Sabotage rule) { return active_sabotage == rule; }
#else
constexpr bool sabotaged(Sabotage /*rule*/) { return false; }
#endif

}  // namespace berth::disk
