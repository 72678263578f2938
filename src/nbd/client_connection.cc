#include "nbd/client_connection.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include <libnbd.h>
#include <poll.h>

#include <fmt/format.h>

#include "base/units.h"
#include "nbd/protocol.h"

namespace berth::nbd {
namespace {

Error nbd_error(const char* what) {
  const char* reason = ::nbd_get_error();
  return Error::from_errno(::nbd_get_errno(),
                           fmt::format("{}: {}", what, reason == nullptr ? "unknown" : reason));
}

int milliseconds_until(Instant deadline) {
  const auto left =
      std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now())
          .count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 60'000));
}

int on_completion(void* operation, int* error) {
  auto& ended = *static_cast<ClientOperation*>(operation);
  ended.error = *error;
  ended.done = true;
  return 1;  // libnbd may forget the command
}

int on_extents(void* operation, const char* /*context*/, std::uint64_t /*offset*/,
               std::uint32_t* entries, std::size_t count, int* /*error*/) {
  auto& extents = static_cast<ClientOperation*>(operation)->extents;
  for (std::size_t i = 0; i + 1 < count; i += 2)
    extents.push_back({.length = entries[i], .flags = entries[i + 1]});
  return 0;
}

}  // namespace

void ClientConnection::Close::operator()(nbd_handle* handle) const { ::nbd_close(handle); }

ClientConnection::~ClientConnection() = default;

Result<std::unique_ptr<ClientConnection>> ClientConnection::connect(const std::string& uri,
                                                                    Instant deadline,
                                                                    Interrupt interrupt) {
  std::unique_ptr<ClientConnection> connection(new ClientConnection);
  TRY(connection->prepare());
  if (::nbd_aio_connect_uri(connection->handle_.get(), uri.c_str()) != 0)
    return failure(nbd_error("cannot connect"));
  TRY(connection->finish_handshake(deadline, interrupt));
  TRY(connection->learn());
  return connection;
}

Result<void> ClientConnection::prepare() {
  handle_.reset(::nbd_create());
  if (handle_ == nullptr) return failure(nbd_error("cannot set up libnbd"));
  // Certificates named in the URI: it comes from whoever owns the volume, not from the network.
  if (::nbd_set_uri_allow_local_file(handle_.get(), true) != 0 ||
      ::nbd_add_meta_context(handle_.get(), LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 ||
      ::nbd_set_pread_initialize(handle_.get(), false) != 0) {
    return failure(nbd_error("cannot set up libnbd"));
  }
  return {};
}

Result<void> ClientConnection::finish_handshake(Instant deadline, const Interrupt& interrupt) {
  while (::nbd_aio_is_ready(handle_.get()) == 0) {
    TRY(wait(interrupt.wakeup, deadline));
    if (interrupt.interrupted(interrupt.context))
      return failure(ErrorKind::cancelled, "the file was closed");
    if (std::chrono::steady_clock::now() >= deadline)
      return failure(ErrorKind::timed_out, "no answer to the handshake");
  }
  return {};
}

Result<void> ClientConnection::learn() {
  const std::int64_t size = ::nbd_get_size(handle_.get());
  const std::int64_t minimum = ::nbd_get_block_size(handle_.get(), LIBNBD_SIZE_MINIMUM);
  const std::int64_t maximum = ::nbd_get_block_size(handle_.get(), LIBNBD_SIZE_MAXIMUM);
  const int context = ::nbd_can_meta_context(handle_.get(), LIBNBD_CONTEXT_BASE_ALLOCATION);
  if (size < 0 || minimum < 0 || maximum < 0 || context < 0)
    return failure(nbd_error("cannot learn about the export"));
  block_minimum_ =
      static_cast<std::uint32_t>(std::clamp<std::int64_t>(minimum, 1, block_minimum_max));
  if (!std::has_single_bit(block_minimum_)) {
    return failure(ErrorKind::protocol,
                   fmt::format("the server has blocks of {} bytes", block_minimum_));
  }
  size_ = round_down(static_cast<std::uint64_t>(size), block_minimum_);  // the rest cannot be read
  const std::int64_t payload = maximum == 0 ? payload_length_max : maximum;
  payload_max_ = static_cast<std::uint32_t>(round_down(
      std::clamp<std::int64_t>(payload, block_minimum_max, payload_length_max), block_minimum_));
  knows_holes_ = context == 1;
  return {};
}

Result<void> ClientConnection::start_read(std::uint64_t offset, MutableBytes into,
                                          ClientOperation& operation) {
  const nbd_completion_callback completion{
      .callback = on_completion, .user_data = &operation, .free = nullptr};
  if (::nbd_aio_pread(handle_.get(), into.data(), into.size(), offset, completion, 0) >= 0)
    return {};
  return failure(nbd_error("cannot read"));
}

Result<void> ClientConnection::start_status(std::uint64_t offset, std::uint64_t length,
                                            ClientOperation& operation) {
  const nbd_extent_callback extents{
      .callback = on_extents, .user_data = &operation, .free = nullptr};
  const nbd_completion_callback completion{
      .callback = on_completion, .user_data = &operation, .free = nullptr};
  if (::nbd_aio_block_status(handle_.get(), length, offset, extents, completion, 0) >= 0) return {};
  return failure(nbd_error("cannot ask for the block status"));
}

Result<void> ClientConnection::wait(int wakeup, Instant deadline) {
  nbd_handle* handle = handle_.get();
  // Starting a command may already have found the connection broken: there is nothing to poll then.
  TRY(expect_open());
  const unsigned direction = ::nbd_aio_get_direction(handle);
  short events = 0;
  if ((direction & LIBNBD_AIO_DIRECTION_READ) != 0) events |= POLLIN;
  if ((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0) events |= POLLOUT;
  std::array<pollfd, 2> fds{{{.fd = ::nbd_aio_get_fd(handle), .events = events, .revents = 0},
                             {.fd = wakeup, .events = POLLIN, .revents = 0}}};
  if (::poll(fds.data(), fds.size(), milliseconds_until(deadline)) < 0 && errno != EINTR) {
    return errno_failure(errno, "cannot wait for an NBD server");
  }
  const short happened = fds[0].revents;
  int outcome = 0;
  // As nbd_poll(3) does it: an event may have been for the state before.
  if ((happened & (POLLIN | POLLHUP)) != 0 && (direction & LIBNBD_AIO_DIRECTION_READ) != 0) {
    outcome = ::nbd_aio_notify_read(handle);
  } else if ((happened & POLLOUT) != 0 && (direction & LIBNBD_AIO_DIRECTION_WRITE) != 0) {
    outcome = ::nbd_aio_notify_write(handle);
  } else if ((happened & (POLLERR | POLLNVAL)) != 0) {
    return failure(ErrorKind::disconnected, "the connection to the NBD server is broken");
  }
  if (outcome != 0) return failure(nbd_error("the connection to the NBD server failed"));
  return expect_open();
}

Result<void> ClientConnection::expect_open() const {
  if (::nbd_aio_is_dead(handle_.get()) == 0 && ::nbd_aio_is_closed(handle_.get()) == 0) return {};
  return failure(ErrorKind::disconnected, "the NBD server closed the connection");
}

}  // namespace berth::nbd
