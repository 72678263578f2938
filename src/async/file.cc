#include "async/file.h"

#include <fmt/format.h>

namespace berth {

Error File::Awaiter::error() const {
  const char* verb = "";
  switch (request_.kind) {
    case FileRequest::Kind::read: verb = "read"; break;
    case FileRequest::Kind::write: verb = "write"; break;
    case FileRequest::Kind::sync:
    case FileRequest::Kind::sync_all: verb = "sync"; break;
    case FileRequest::Kind::punch: verb = "discard in"; break;
    case FileRequest::Kind::zero: verb = "zero in"; break;
  }
  return Error::from_errno(static_cast<int>(-request_.result),
                           fmt::format("cannot {} '{}' at offset {}, {} bytes", verb, file_.name(),
                                       request_.offset, request_.length));
}

}  // namespace berth
