#include "agent/program/rehearsal.h"

#include <array>
#include <cerrno>
#include <cstdlib>

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "agent/program/child.h"
#include "base/fd.h"

namespace berth::agent {
namespace {

constexpr unsigned lifetime_s = 10;
constexpr const char* answered_file = "/etc/hosts";

Result<Fd> listen_on_loopback(std::uint16_t& port) {
  Fd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener) return errno_failure(errno, "cannot make a socket");
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (::bind(listener.get(), generic, size) != 0 || ::listen(listener.get(), 8) != 0 ||
      ::getsockname(listener.get(), generic, &size) != 0) {
    return errno_failure(errno, "cannot listen on the loopback");
  }
  port = ntohs(address.sin_port);
  return listener;
}

void answer(const Fd& client) {
  std::array<char, 4096> request{};
  (void)!::recv(client.get(), request.data(), request.size(), 0);
  struct stat status{};
  (void)!::stat(answered_file, &status);
  const Fd file(::open(answered_file, O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file || ::fstat(file.get(), &status) != 0) return;
  const int on = 1;
  ::setsockopt(client.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  std::array<char, 16> head{};
  const iovec piece{.iov_base = head.data(), .iov_len = head.size()};
  (void)!::writev(client.get(), &piece, 1);
  off_t from = 0;
  (void)!::sendfile(client.get(), file.get(), &from, static_cast<std::size_t>(status.st_size));
  (void)!::pread(file.get(), head.data(), head.size(), 0);
  (void)!::send(client.get(), head.data(), head.size(), MSG_NOSIGNAL);
}

/// A connection that ends like others keeps its port for a minute (tcp(7), TIME_WAIT), which may be
/// one that the workload wants.
void leave_nothing(const Fd& client) {
  const linger at_once{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(client.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
}

/// What freezing breaks off goes on.
bool wait_for(const Fd& events) {
  epoll_event happened{};
  int count = 0;
  do {
    count = ::epoll_wait(events.get(), &happened, 1, -1);
  } while (count < 0 && errno == EINTR);
  return count == 1;
}

/// As a service does: epoll(7), and what comes of it.
void serve_one(const Fd& listener) {
  const Fd events(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event wanted{.events = EPOLLIN, .data = {.fd = listener.get()}};
  ::epoll_ctl(events.get(), EPOLL_CTL_ADD, listener.get(), &wanted);
  if (!wait_for(events)) return;
  const Fd client(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!client) return;
  wanted = {.events = EPOLLIN | EPOLLRDHUP, .data = {.fd = client.get()}};
  ::epoll_ctl(events.get(), EPOLL_CTL_ADD, client.get(), &wanted);
  if (wait_for(events)) answer(client);
  if (wait_for(events)) leave_nothing(client);
}

}  // namespace

Result<std::uint16_t> rehearse(Workload& workload) {
  std::uint16_t port = 0;
  const Fd listener = TRY(listen_on_loopback(port));
  const pid_t child = ::fork();
  if (child < 0) return errno_failure(errno, "cannot start a process");
  if (child == 0) {
    reset_signals();
    ::alarm(lifetime_s);
    serve_one(listener);
    ::_exit(0);
  }
  workload.rehearse(child);
  return port;
}

}  // namespace berth::agent
