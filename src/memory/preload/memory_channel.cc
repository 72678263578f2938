#include "memory/preload/memory_channel.h"

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstring>

#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "memory/preload/channel_format.h"
#include "memory/preload/guest_memory.h"

namespace berth::memory::preload {
namespace {

constexpr int clients_waiting_max = 4;
constexpr timeval patience{.tv_sec = 2, .tv_usec = 0};
constexpr std::size_t stack_size = std::size_t{256} << 10;

int listener = -1;
channel::Request request;  // the thread's

/// A descriptor that came with a message; closed with it.
struct Message {
  ssize_t length = -1;
  int fd = -1;
  bool is_whole = false;
  ~Message() {
    if (fd >= 0) ::close(fd);
  }
};

void receive(int client, Message& message) {
  iovec data{.iov_base = &request, .iov_len = sizeof request};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  do {
    message.length = ::recvmsg(client, &header, MSG_CMSG_CLOEXEC);
  } while (message.length < 0 && errno == EINTR);
  if (message.length <= 0) return;
  // The kernel closes descriptors for which there is no room, and says so.
  message.is_whole = (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
  const cmsghdr* rights = CMSG_FIRSTHDR(&header);
  if (rights == nullptr || rights->cmsg_level != SOL_SOCKET || rights->cmsg_type != SCM_RIGHTS)
    return;
  // The room is rounded up: two of them fit.
  const std::size_t count = (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int);
  for (std::size_t i = 0; i < count; ++i) {
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(rights) + i * sizeof fd, sizeof fd);
    if (message.fd >= 0) ::close(message.fd);
    message.fd = fd;
  }
  message.is_whole = message.is_whole && count <= 1;
}

bool is_well_formed(const Message& message) {
  const channel::RequestHead& head = request.head;
  if (!message.is_whole || message.length < static_cast<ssize_t>(sizeof head)) return false;
  return head.magic == channel::magic && head.version == channel::version &&
         (head.operation == channel::describe || head.operation == channel::map) &&
         head.ranges <= channel::ranges_max &&
         static_cast<std::size_t>(message.length) ==
             sizeof head + head.ranges * sizeof(channel::Range);
}

channel::Answer answer_to(const Message& message) {
  channel::Answer answer{};
  answer.magic = channel::magic;
  answer.version = channel::version;
  answer.status = channel::malformed;
  if (!is_well_formed(message)) return answer;
  answer.operation = request.head.operation;
  describe_guest_memory(answer);
  if (answer.status == channel::done && request.head.operation == channel::map)
    map_into_guest_memory(message.fd, request.range, request.head.ranges, answer);
  return answer;
}

bool may_ask(int client) {
  ucred peer{};
  socklen_t length = sizeof peer;
  return ::getsockopt(client, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
         (peer.uid == 0 || peer.uid == ::geteuid());
}

void serve_client(int client) {
  if (!may_ask(client)) return;
  (void)::setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  (void)::setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  for (;;) {
    Message message;
    receive(client, message);
    if (message.length <= 0) return;
    const channel::Answer answer = answer_to(message);
    if (::send(client, &answer, sizeof answer, MSG_NOSIGNAL) != sizeof answer) return;
  }
}

void* serve(void* /*argument*/) {
  for (;;) {
    const int client = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) {
      // Out of descriptors: QEMU has other troubles, and may get over them.
      if (errno != EINTR && errno != ECONNABORTED) ::usleep(100'000);
      continue;
    }
    serve_client(client);
    ::close(client);
  }
}

void listen_on(const char* path) {
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  if (::strlen(path) >= sizeof address.sun_path) give_up("its channel's path is too long", 0);
  ::strcpy(address.sun_path, path);
  struct stat status{};
  if (::lstat(path, &status) == 0 && S_ISSOCK(status.st_mode)) ::unlink(path);
  listener = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  // Nobody can connect before listen().
  if (listener < 0 ||
      ::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::chmod(path, 0600) != 0 || ::listen(listener, clients_waiting_max) != 0)
    give_up(path, errno);
}

}  // namespace

void serve_memory_channel(const char* path) {
  listen_on(path);
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  pthread_attr_t attributes;
  pthread_t thread;
  int error = ::pthread_attr_init(&attributes);
  if (error == 0) error = ::pthread_attr_setstacksize(&attributes, stack_size);
  if (error == 0) error = ::pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  if (error == 0) error = ::pthread_sigmask(SIG_SETMASK, &all, &before);
  if (error == 0) error = ::pthread_create(&thread, &attributes, serve, nullptr);
  if (error != 0) give_up("no thread for its channel", error);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ::pthread_attr_destroy(&attributes);
}

}  // namespace berth::memory::preload
