// Opens a file of the volume under its lock. A process that has just died may still hold it for the
// moment that its last writes take to land: they must have, before anybody else relies on what the
// file says.
#pragma once

#include <memory>
#include <string>

#include "async/file.h"
#include "async/loop.h"
#include "async/task.h"

namespace berth::disk {

constexpr Duration lock_wait_max = std::chrono::seconds(2);

/// `in_use` if the lock is still taken after lock_wait_max.
Task<Result<std::unique_ptr<File>>> open_locked(Loop& loop, Directory& directory, std::string name,
                                                berth::OpenOptions options);

}  // namespace berth::disk
