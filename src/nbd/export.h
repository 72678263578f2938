// Export: what the NBD server serves. The seam between the protocol and whatever holds the bytes.
//
// One loop. Offsets and lengths are bytes, already checked against `size` by the server, and
// multiples of block_minimum. Buffers are page aligned. Calls may overlap in any number; the order
// of overlapping requests in flight is undefined, as the protocol allows. Errors reach the client
// as the NBD error of their kind (no_space: ENOSPC, read_only: EPERM, permission: EPERM,
// invalid_argument: EINVAL, limit: ENOSPC, all else: EIO). `unsupported` is ENOTSUP in answer to a
// fast zero and EINVAL otherwise.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "async/task.h"
#include "base/bytes.h"
#include "base/result.h"

namespace berth::nbd {

struct ExportInfo {
  std::string name;
  std::string description;
  std::uint64_t size = 0;  // bytes
  bool read_only = false;
  bool can_discard = true;
  bool can_zero = true;
  bool can_fast_zero = true;
  std::uint32_t block_minimum = 1;            // smallest request, bytes, a power of two
  std::uint32_t block_preferred = 64 * 1024;  // best request size, bytes
  std::uint32_t block_maximum = 32 * 1024 * 1024;
  // Metadata contexts beside base:allocation, each by its full name.
  std::vector<std::string> contexts;
};

/// The metadata context that every export has, and its flags.
constexpr std::string_view base_allocation = "base:allocation";
constexpr std::uint32_t status_hole = 1U << 0;
constexpr std::uint32_t status_zero = 1U << 1;

struct StatusExtent {
  std::uint64_t length = 0;  // bytes
  std::uint32_t flags =
      0;  // base:allocation: bit 0 hole, bit 1 zero; changed, dirty-bitmap: bit 0 changed
};

struct ZeroOptions {
  bool keep_allocated = false;  // NBD_CMD_FLAG_NO_HOLE
  bool fast_only = false;       // NBD_CMD_FLAG_FAST_ZERO: `unsupported` where it would be slow
  bool force_unit_access = false;
};

class Export {
 public:
  virtual ~Export() = default;
  virtual const ExportInfo& info() const = 0;

  virtual Task<Result<void>> read(std::uint64_t offset, MutableBytes into) = 0;
  virtual Task<Result<void>> write(std::uint64_t offset, Bytes from, bool force_unit_access) = 0;
  virtual Task<Result<void>> flush() = 0;
  virtual Task<Result<void>> discard(std::uint64_t offset, std::uint64_t length,
                                     bool force_unit_access) = 0;
  virtual Task<Result<void>> zero(std::uint64_t offset, std::uint64_t length,
                                  ZeroOptions options) = 0;

  /// Extents from `offset` on, in order, without gaps, together at most `length` bytes and at most
  /// `extents_max` of them; at least one. `context` is "base:allocation" or one of info().contexts.
  virtual Task<Result<std::vector<StatusExtent>>> block_status(std::string context,
                                                               std::uint64_t offset,
                                                               std::uint64_t length,
                                                               std::size_t extents_max) = 0;
};

/// What a client is told of an export that it has not asked for yet.
struct ListedExport {
  std::string name;
  std::string description;  // for people; may be empty
  bool operator==(const ListedExport&) const = default;
};

/// Finds exports by name, for NBD_OPT_LIST, INFO and GO. A found export stays good as long as the
/// returned pointer lives.
class ExportDirectory {
 public:
  virtual ~ExportDirectory() = default;
  virtual std::vector<ListedExport> list() = 0;
  /// not_found, or why it cannot be served now.
  virtual Task<Result<std::shared_ptr<Export>>> find(std::string name) = 0;
};

}  // namespace berth::nbd
