// Departure: a directory of ours that is copied to somewhere else. It is filled beside the
// directory that it becomes, and gets its name when all of it is there; until then it goes with the
// object, and, should this process die, with the next command. Blocking.
#pragma once

#include <string>
#include <string_view>

#include "base/fd.h"
#include "base/result.h"
#include "machine/layout.h"

namespace berth::machine {

class Departure {
 public:
  /// What leaves: for messages, and for where it must not go.
  struct Traveller {
    std::string_view what;  // "volume"
    std::string home;       // the directory where such things of this host are
    std::string_view noun;  // of the commands for it
  };
  /// `to` is absolute, not there (already_exists), and not in the traveller's home; `in_use` while
  /// somebody else exports to it.
  static Result<Departure> begin(StateLayout state, std::string to, const Traveller& traveller);
  Departure(Departure&& other) noexcept;
  Departure& operator=(Departure&& other) = delete;
  /// Removes what was not published.
  ~Departure();

  const std::string& path() const { return path_; }
  const std::string& to() const { return to_; }
  /// Durably. The files in it are durable already.
  Result<void> publish();

 private:
  Departure(std::string parent, std::string to, std::string path, Fd lock, std::string mark);

  std::string parent_;
  std::string to_;
  std::string path_;
  Fd lock_;  // empty once it is published, or has moved on
  std::string mark_;
};

}  // namespace berth::machine
