#include "base/error.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace berth {
namespace {

constexpr std::array<std::pair<ErrorKind, std::string_view>, 18> kind_names{{
    {ErrorKind::invalid_argument, "invalid_argument"},
    {ErrorKind::not_found, "not_found"},
    {ErrorKind::already_exists, "already_exists"},
    {ErrorKind::precondition, "precondition"},
    {ErrorKind::full_backup_required, "full_backup_required"},
    {ErrorKind::in_use, "in_use"},
    {ErrorKind::io_error, "io_error"},
    {ErrorKind::no_space, "no_space"},
    {ErrorKind::read_only, "read_only"},
    {ErrorKind::corrupt, "corrupt"},
    {ErrorKind::unsupported, "unsupported"},
    {ErrorKind::protocol, "protocol"},
    {ErrorKind::permission, "permission"},
    {ErrorKind::limit, "limit"},
    {ErrorKind::cancelled, "cancelled"},
    {ErrorKind::timed_out, "timed_out"},
    {ErrorKind::disconnected, "disconnected"},
    {ErrorKind::internal, "internal"},
}};

ErrorKind kind_of_errno(int errno_value) {
  switch (errno_value) {
    case ENOENT: return ErrorKind::not_found;
    case EEXIST: return ErrorKind::already_exists;
    case ENOSPC:
    case EFBIG:
    case EDQUOT: return ErrorKind::no_space;
    case EROFS: return ErrorKind::read_only;
    case EACCES:
    case EPERM: return ErrorKind::permission;
    case EINVAL: return ErrorKind::invalid_argument;
    case EOPNOTSUPP:
    case ENOSYS: return ErrorKind::unsupported;
    case EBUSY:
    case EWOULDBLOCK:
    case EADDRINUSE: return ErrorKind::in_use;
    case ECANCELED: return ErrorKind::cancelled;
    case ETIMEDOUT: return ErrorKind::timed_out;
    case EPIPE:
    case ECONNRESET:
    case ECONNREFUSED: return ErrorKind::disconnected;
    default: return ErrorKind::io_error;
  }
}

}  // namespace

std::string_view to_string(ErrorKind kind) {
  for (const auto& [value, name] : kind_names) {
    if (value == kind) return name;
  }
  return "internal";
}

ErrorKind error_kind_from_string(std::string_view name) {
  for (const auto& [value, known] : kind_names) {
    if (known == name) return value;
  }
  return ErrorKind::internal;
}

Error::Error(ErrorKind kind, std::string context) : payload_(std::make_unique<Payload>()) {
  payload_->kind = kind;
  payload_->context = std::move(context);
}

Error::Error(ErrorKind kind, std::string context, Error cause) : Error(kind, std::move(context)) {
  payload_->errno_value = cause.errno_value();
  payload_->cause = std::move(cause.payload_);
}

Error Error::from_errno(int errno_value, std::string context) {
  Error error(kind_of_errno(errno_value), std::move(context));
  error.payload_->errno_value = errno_value;
  error.payload_->context += ": ";
  error.payload_->context += std::strerror(errno_value);
  return error;
}

Error::Error(const Error& other) : payload_(clone(other.payload_.get())) {}

Error& Error::operator=(const Error& other) {
  if (this != &other) payload_ = clone(other.payload_.get());
  return *this;
}

std::string Error::message() const {
  std::string text = payload_->context;
  for (const Payload* cause = payload_->cause.get(); cause != nullptr; cause = cause->cause.get()) {
    text += ": ";
    text += cause->context;
  }
  return text;
}

Error Error::with_context(std::string context) && {
  const ErrorKind same_kind = kind();
  return Error(same_kind, std::move(context), std::move(*this));
}

std::unique_ptr<Error::Payload> Error::clone(const Payload* payload) {
  if (payload == nullptr) return nullptr;
  auto copy = std::make_unique<Payload>();
  copy->kind = payload->kind;
  copy->errno_value = payload->errno_value;
  copy->context = payload->context;
  copy->cause = clone(payload->cause.get());
  return copy;
}

}  // namespace berth
