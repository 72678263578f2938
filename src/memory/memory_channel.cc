#include "memory/memory_channel.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string_view>

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <fmt/format.h>

namespace berth::memory {
namespace {

// A request maps 1,024 ranges and gives back what was there.
constexpr timeval patience{.tv_sec = 30, .tv_usec = 0};

std::string_view reason_of(std::uint32_t status) {
  switch (status) {
    case channel::not_mapped: return "its memory is not mapped, or not once and whole";
    case channel::out_of_bounds: return "that is not in its memory";
    case channel::wrong_file: return "that file cannot be mapped there";
    case channel::refused: return "its kernel refuses";
    default: return "it does not understand us: it was started by another version of Berth";
  }
}

template <typename Call>
ssize_t uninterrupted(Call call) {
  ssize_t result = 0;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

ErrorKind kind_of(const channel::Answer& answer) {
  if (answer.error == ENOMEM) return ErrorKind::limit;
  if (answer.status == channel::not_mapped) return ErrorKind::precondition;
  if (answer.status == channel::malformed) return ErrorKind::unsupported;
  return ErrorKind::io_error;
}

}  // namespace

Result<MemoryChannel> MemoryChannel::connect(const std::string& path) {
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  if (path.size() >= sizeof address.sun_path) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is too long for the path of a socket", path));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket) return errno_failure(errno, "no socket");
  (void)::setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  (void)::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
    return MemoryChannel(path, std::move(socket));
  const int error = errno;
  if (error == ENOENT || error == ECONNREFUSED) {
    return failure(ErrorKind::disconnected,
                   fmt::format("nobody serves the memory channel '{}': the machine is off, or was "
                               "started without it",
                               path));
  }
  return errno_failure(error, fmt::format("cannot connect to the memory channel '{}'", path));
}

Result<channel::Answer> MemoryChannel::ask(const channel::Request& request, int fd) {
  iovec data{.iov_base = const_cast<channel::Request*>(&request),
             .iov_len = sizeof request.head + request.head.ranges * sizeof(channel::Range)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  channel::Answer answer{};
  ssize_t got = uninterrupted([&] { return ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL); });
  if (got >= 0) {
    got = uninterrupted([&] { return ::recv(socket_.get(), &answer, sizeof answer, MSG_TRUNC); });
  }
  if (got < 0 && errno == EAGAIN) {
    return failure(ErrorKind::timed_out,
                   fmt::format("the memory channel '{}' does not answer", path_));
  }
  if (got < 0 && errno != EPIPE && errno != ECONNRESET)
    return errno_failure(errno, fmt::format("cannot ask the memory channel '{}'", path_));
  if (got <= 0) {
    return failure(ErrorKind::disconnected,
                   fmt::format("the memory channel '{}' was closed: the machine has ended, or it "
                               "serves somebody else",
                               path_));
  }
  if (got != sizeof answer || answer.magic != channel::magic ||
      answer.version != channel::version || answer.ranges > request.head.ranges) {
    return failure(ErrorKind::protocol,
                   fmt::format("the memory channel '{}' answers with something else", path_));
  }
  if (answer.status == channel::done) return answer;
  return failure(kind_of(answer),
                 fmt::format("the memory channel '{}' says no: {}{}{}", path_,
                             reason_of(answer.status), answer.error != 0 ? ": " : "",
                             answer.error != 0 ? ::strerror(static_cast<int>(answer.error)) : ""));
}

Result<channel::Answer> MemoryChannel::describe() {
  channel::Request request{};
  request.head = {.magic = channel::magic,
                  .version = channel::version,
                  .operation = channel::describe,
                  .ranges = 0,
                  .reserved = 0};
  return ask(request, -1);
}

Result<void> MemoryChannel::map(const Fd& file, std::span<const PageRange> ranges) {
  const auto request = std::make_unique<channel::Request>();
  while (!ranges.empty()) {
    const auto batch = ranges.first(std::min<std::size_t>(ranges.size(), channel::ranges_max));
    request->head = {.magic = channel::magic,
                     .version = channel::version,
                     .operation = channel::map,
                     .ranges = static_cast<std::uint32_t>(batch.size()),
                     .reserved = 0};
    std::ranges::transform(batch, std::begin(request->range), [](const PageRange& range) {
      return channel::Range{.offset = range.offset, .length = range.length};
    });
    TRY(ask(*request, file.get()));
    ranges = ranges.subspan(batch.size());
  }
  return {};
}

}  // namespace berth::memory
