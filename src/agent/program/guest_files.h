// Pieces of files of the guest, in and out: `write_file` and `read_file`.
#pragma once

#include "agent/fields.h"

namespace berth::agent {

Result<void> write_file_piece(const Fields& fields);
/// `content` and what the file is, into the answer.
Result<void> read_file_piece(const Fields& fields, FieldWriter& answer);

}  // namespace berth::agent
