// Errors: a small kind to match, a context for a person, and the cause beneath it.
//
// Callers branch on `kind()` alone. `message()` says what failed, on what, why, and what a person
// can do about it. An Error is one pointer wide, so that a Result on the data path stays small.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace berth {

enum class ErrorKind {
  invalid_argument,      // the request itself is wrong; repeating it cannot help
  not_found,             // the named thing does not exist
  already_exists,        // the name is taken
  precondition,          // the thing is not in a state that allows this
  full_backup_required,  // a reference point cannot be vouched for; the reason is in the message
  in_use,                // somebody else holds it (a lock, a reader, a dependent)
  io_error,              // the device or the kernel refused
  no_space,              // the device is full
  read_only,             // the device or the file system does not take writes
  corrupt,               // a checksum or an invariant of a format does not hold
  unsupported,           // valid, but not something that this build or this peer does
  protocol,              // a peer broke the rules of a wire protocol
  permission,            // not allowed
  limit,                 // a named limit would be exceeded
  cancelled,             // somebody asked for it to end
  timed_out,             // it did not end within its bound
  disconnected,          // the peer went away
  internal,              // a mistake of ours that was caught
};

/// The stable name of a kind, as it appears in JSON ("full_backup_required").
std::string_view to_string(ErrorKind kind);

/// The inverse of to_string; `internal` for a name that this build does not know.
ErrorKind error_kind_from_string(std::string_view name);

class [[nodiscard]] Error {
 public:
  Error(ErrorKind kind, std::string context);
  Error(ErrorKind kind, std::string context, Error cause);

  /// From an errno value: ENOSPC and EDQUOT become no_space, EROFS read_only, and so on.
  static Error from_errno(int errno_value, std::string context);

  Error(Error&&) noexcept = default;
  Error& operator=(Error&&) noexcept = default;
  Error(const Error& other);
  Error& operator=(const Error& other);
  ~Error() = default;

  ErrorKind kind() const { return payload_->kind; }
  const std::string& context() const { return payload_->context; }
  /// The errno that this error began with, or 0.
  int errno_value() const { return payload_->errno_value; }
  /// The context and, after colons, every cause beneath it.
  std::string message() const;

  /// The same kind, with `context` put in front: "cannot open volume 'a': <what it said before>".
  Error with_context(std::string context) &&;

 private:
  struct Payload {
    ErrorKind kind;
    int errno_value = 0;
    std::string context;
    std::unique_ptr<Payload> cause;
  };
  static std::unique_ptr<Payload> clone(const Payload* payload);

  std::unique_ptr<Payload> payload_;
};

}  // namespace berth
