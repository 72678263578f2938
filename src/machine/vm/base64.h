// Base64 (RFC 4648, section 4), as the guest agent wraps bytes in. Pure.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace berth::machine {

/// `protocol` if it is none.
Result<std::string> decode_base64(std::string_view text);

}  // namespace berth::machine
