// What a client of a keeper's attach socket asks for, in its first line
// (docs/formats/containers.md, "Attach"). Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "container/guest_process.h"

namespace berth::container {

struct AttachRequest {
  enum class Kind : std::uint8_t { attach, exec, copy_out, copy_in };
  Kind kind = Kind::attach;
  // attach
  bool input = false;
  bool from_start = false;
  std::uint16_t rows = 0;  // 0: nobody knows
  std::uint16_t columns = 0;
  // exec
  ProcessSpecification process;
  // copy_out, copy_in
  std::string path;
  bool keep_owners = false;
};

/// invalid_argument, with the member that is wrong.
Result<AttachRequest> decode_attach_request(std::string_view line);

}  // namespace berth::container
