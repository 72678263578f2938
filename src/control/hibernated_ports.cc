#include "control/hibernated_ports.h"

#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <fmt/format.h>

namespace berth::control {
namespace {

using Tcp = boost::asio::ip::tcp;

constexpr int refused_max = 4096;  // at once

/// One that is waited on. Others have the same socket: it is taken out of Asio's epoll before it is
/// closed, which would leave it there.
class Waiting {
 public:
  Waiting(const Executor& executor, Fd socket) : socket_(executor, socket.release()) {}
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;
  ~Waiting() { const Fd closed(socket_.release()); }

  template <typename Handler>
  void wait(Handler handler) {
    socket_.async_wait(boost::asio::posix::stream_descriptor::wait_read, std::move(handler));
  }

 private:
  boost::asio::posix::stream_descriptor socket_;
};

Result<Fd> listen_at(const container::PublishedPort& port) {
  const auto failed = [&port](int error) {
    return errno_failure(error,
                         fmt::format("cannot listen at {}:{}", port.host_address, port.host_port));
  };
  boost::system::error_code error;
  const Tcp::endpoint at(boost::asio::ip::make_address(port.host_address, error), port.host_port);
  if (error) return failed(EINVAL);
  Fd socket(::socket(at.protocol().family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int yes = 1;
  if (!socket || ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0 ||
      ::bind(socket.get(), at.data(), static_cast<socklen_t>(at.size())) != 0 ||
      ::listen(socket.get(), SOMAXCONN) != 0)
    return failed(errno);
  return socket;
}

}  // namespace

struct HibernatedPorts::Watched {
  std::vector<Fd> listening;
  std::vector<std::unique_ptr<Waiting>> waiting;  // of duplicates
};

Result<std::vector<Fd>> HibernatedPorts::listen(
    const std::vector<container::PublishedPort>& ports) {
  std::vector<Fd> all;
  for (const container::PublishedPort& port : ports) all.push_back(TRY(listen_at(port)));
  return all;
}

void HibernatedPorts::watch(const std::string& name, std::vector<Fd> listening) {
  auto watched = std::make_shared<Watched>();
  watched->listening = std::move(listening);
  watched_[name] = watched;
  wait(name, watched);
}

void HibernatedPorts::wait(const std::string& name, const std::shared_ptr<Watched>& watched) {
  watched->waiting.clear();
  for (const Fd& socket : watched->listening) {
    Fd duplicate(::fcntl(socket.get(), F_DUPFD_CLOEXEC, 0));
    if (!duplicate) continue;
    watched->waiting.push_back(std::make_unique<Waiting>(executor_, std::move(duplicate)));
    watched->waiting.back()->wait(
        [this, name, weak = std::weak_ptr(watched)](boost::system::error_code error) {
          const auto ours = weak.lock();
          // The first of them counts.
          if (error || !ours || ours->waiting.empty()) return;
          ours->waiting.clear();
          if (wanted_) wanted_(name);
        });
  }
}

void HibernatedPorts::refuse(const std::string& name) {
  const auto found = watched_.find(name);
  if (found == watched_.end()) return;
  for (const Fd& socket : found->second->listening) {
    for (int refused = 0; refused < refused_max; ++refused) {
      pollfd waiting{.fd = socket.get(), .events = POLLIN, .revents = 0};
      if (::poll(&waiting, 1, 0) <= 0) break;
      const Fd connection(::accept4(socket.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (!connection) break;
    }
  }
  wait(name, found->second);
}

std::vector<int> HibernatedPorts::descriptors(const std::string& name) const {
  std::vector<int> all;
  if (const auto found = watched_.find(name); found != watched_.end())
    for (const Fd& socket : found->second->listening) all.push_back(socket.get());
  return all;
}

}  // namespace berth::control
