// Asio opens sockets that children inherit; the processes that we start are to have none of ours.
#pragma once

#include <fcntl.h>

namespace berth::control {

/// For a socket or acceptor of Asio that is open.
template <typename Socket>
void close_on_exec(Socket& socket) {
  ::fcntl(socket.native_handle(), F_SETFD, FD_CLOEXEC);
}

}  // namespace berth::control
